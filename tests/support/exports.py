"""Exports whose consumer computes in the test's own process: a fresh one takes seconds."""

import json
import os
from functools import cache
from typing import Any

import torch

from fedmoe.data.text import TextSettings
from fedmoe.export.exported import Export, Exported
from fedmoe.export.reload import Request, logits_of
from fedmoe.models.build import checkpoint_folder
from fedmoe.models.families.family import through_interface
from fedmoe.models.folder import model_folder


@cache
def tokenizer() -> Any:
    """The built-in model's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder("mini"))


def exported(adapter, model, settings, out, format="peft", **changes) -> Exported:
    """Export an adapter of a model at its full k."""
    fields: dict[str, Any] = {
        "name": "test",
        "format": format,
        "adapter": adapter,
        "model": model,
        "path": settings.path,
        "tokenizer": tokenizer(),
        "text": TextSettings(template="plain"),
        "top_k": model.full_top_k,
        "factors": torch.ones(len(model.layers)),
    }
    return Export(**fields | changes).write(out, logits_of)


def record(family: str, form: str, outcome: str) -> None:
    """Add an outcome to the file that `EXPORT_OUTCOMES` names, for `export_table.py`."""
    if place := os.environ.get("EXPORT_OUTCOMES"):
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps([family, form, outcome]) + "\n")


def export(adapter, model, settings, out) -> float:
    """Export an adapter for PEFT, and return the largest difference of logits."""
    return exported(adapter, model, settings, out).largest_difference


def largest_difference(adapter, model, settings, folder) -> float:
    """Return how far the logits of `PeftModel.from_pretrained(folder)` are from ours."""
    source, kind = checkpoint_folder(settings.path), model.family.model_type
    eager = model.family.install is through_interface
    batch = model.form.sample(model.model)
    (theirs,) = logits_of(Request(str(folder), "fused", str(source), kind, eager), [batch])
    model.load(adapter)
    model.set_budget(model.full_top_k, torch.ones(len(model.layers)))
    return (theirs - model.target_logits(batch)).abs().max().item()

"""Tiny random models of every family, on transformers' own classes."""

import shutil
from pathlib import Path

import torch
import yaml

from fedmoe.models.families import Family
from fedmoe.models.families.family import through_interface
from fedmoe.models.tasks import TASKS

TINY = yaml.safe_load(Path(__file__).with_name("tiny_models.yaml").read_text())


def tiny_settings(family: Family):
    """Return the settings of the family's tiny config; DBRX and others name sizes differently."""
    own = TINY[family.model_type]
    shared = {k: v for k, v in TINY["shared"].items() if "d_model" not in own or "token_id" in k}
    return shared | {"vocab_size": 64} | own


def tiny_config(family: Family, **changes):
    """Return the family's tiny config."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family.model_type, **tiny_settings(family) | changes)


def tiny_family(family: Family, **changes):
    """A random base model, on transformers' eager experts where it dispatches on them.

    Biases and corrections are random too: at zero they would prove nothing.
    """
    dispatched = {"experts_implementation": "eager"} if on_interface(family) else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build = TASKS[family.task].build
        model = build(tiny_config(family, **changes), torch.float32, **dispatched)
        for name, parameter in model.named_parameters():
            scores = "gate." in name or "router." in name
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.0 if scores else 0.2)
            elif "bias" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        for name, buffer in model.named_buffers():
            if "correction" in name or "expert_bias" in name:
                torch.nn.init.normal_(buffer, std=0.2)
    return model.eval().requires_grad_(False)


def on_interface(family: Family) -> bool:
    """Return whether transformers dispatches on the family's experts."""
    return family.install is through_interface


def save(model, folder: Path) -> Path:
    """The folder of a model with the built-in model's tokenizer."""
    import fedmoe.models

    model.save_pretrained(folder)
    for source in (Path(fedmoe.models.__file__).parent / "mini").glob("tokenizer*"):
        shutil.copy(source, folder)
    return folder

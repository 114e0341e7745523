"""The memory of every family against autograd: a dry run predicts the bytes really saved."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from autograd_bytes import kept_bytes
from family_contract import KINDS, SETTINGS, settings_of, slow_but
from family_models import tiny_family

from fedmoe.adapter import initial_adapter
from fedmoe.budget.model import saved_bytes
from fedmoe.budget.plan import UNCOUNTED
from fedmoe.budget.shape import COUNTED, Setting, shape_of
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

FIRST = ["qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text", "granitemoeshared"]
"""A shared expert, latent attention with dense layers, scores that are kept, weighed inputs."""
UNTOLD = ["qwen4_exp_text"]
"""Whose indexer fake tensors cannot follow: the plan warns."""
SHARED = {"inkling2_text": 0.11}
"""Whose table of distances all sequences share; a dry run of one sequence counts it for each."""
LARGER: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 64}


def made(kind, settings=SETTINGS, **changes):
    return AdaptedModel(tiny_family(FAMILIES[kind], **changes), settings, NoRescaling())


def check(model, top_k, *, length=128, tolerance=0.1):
    """Predicted and kept bytes of 512 tokens differ by no more than `tolerance`."""
    model.set_budget(top_k)
    setting, shape = Setting(top_k, 512 // length, length, 4), shape_of(model)
    assert shape.counted
    logits = 4 * setting.batch_size * setting.targets * shape.vocabulary
    # Tokens and slots of routed rows, two int64, which the experts keep past autograd.
    indices = 16 * top_k * setting.tokens * shape.num_layers
    kept = kept_bytes(model, setting, shape.vocabulary) + indices
    assert saved_bytes(shape, setting) + logits == pytest.approx(kept, rel=tolerance)


@pytest.mark.parametrize("kind", slow_but(FIRST, [k for k in KINDS if k not in UNTOLD]))
def test_what_a_family_keeps_is_told_within_a_tenth(kind):
    model = made(kind, settings_of(kind))
    check(model, model.full_top_k, tolerance=SHARED.get(kind, 0.1))
    assert shape_of(model).experts_bytes("full") == model.frozen.num_bytes("full")


@pytest.mark.parametrize(
    ("top_k", "length"), [(4, 64), pytest.param(1, 512, marks=pytest.mark.slow)]
)
def test_it_is_told_for_any_k_and_length(top_k, length):
    check(made("deepseek_v3", **LARGER), top_k, length=length, tolerance=0.05)


def test_it_is_told_for_any_rank_and_without_attention():
    check(made("qwen2_moe", replace(SETTINGS, attention=False)), 2, tolerance=0.05)
    model = made("qwen2_moe", replace(SETTINGS, rank=16))
    before = shape_of(model)
    check(model, 2, tolerance=0.05)
    low = model.layout.with_rank(4)
    model.load(initial_adapter(low, torch.Generator().manual_seed(0)))
    assert shape_of(model, low).saved == before.saved  # a rank is reckoned beside it
    few, many = (
        saved_bytes(shape_of(model, x), Setting(2, 4, 128, 4)) for x in (low, model.layout)
    )
    assert few < many


@pytest.mark.parametrize("kind", slow_but(COUNTED[:2], COUNTED))
def test_a_dry_run_says_what_the_formula_says(kind):
    """Types with a formula need no dry run, and it agrees with one."""
    model = made(kind)
    formula = shape_of(model)
    assert formula.saved is None
    dry, setting = replace(formula, saved=model.saved, num_linears=8), Setting(2, 4, 128, 4)
    assert len(model.linears) == 8
    assert saved_bytes(dry, setting) == pytest.approx(saved_bytes(formula, setting), rel=0.06)


def test_a_dry_run_leaves_the_model_as_it_was():
    model = made("llama4_text")
    forwards = [vars(m).get("forward") for m in model.model.modules()]
    before = {name: id(p) for name, p in model.model.named_parameters()}
    model.set_budget(2)
    assert model.saved is not None
    assert [vars(m).get("forward") for m in model.model.modules()] == forwards
    assert {name: id(p) for name, p in model.model.named_parameters()} == before
    assert [layer.top_k for layer in model.layers] == [2] * len(model.layers)


def test_what_a_dry_run_cannot_tell_is_said():
    shape = shape_of(made("qwen4_exp_text"))
    assert (shape.saved, shape.counted) == (None, False)
    assert "dry run" in UNCOUNTED

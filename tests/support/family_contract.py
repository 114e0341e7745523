"""Tiny models of every family, made once for all contract tests of families."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from family_models import tiny_family

from fedmoe.adapter import initial_adapter
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

KINDS = [kind for kind, family in FAMILIES.items() if family.task == "causal"]
SETTINGS = LoRA(rank=4, alpha=8.0)
NO_ATTENTION = {"inkling2_text"}
"""Families whose attention takes no LoRA with every transformers that we run on."""
IDS = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
ROUNDING = 2e-6
"""Relative: of the same sums in another order. With the oldest instructions of a CPU, 1.1e-6."""
REPEATS = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "beam",
    "dots3_note_text",
    "flint",
    "glm_moe_dsa",
    "granitemoe_swa",
    "hy_v3",
    "hy_v4",
    "inkling2_text",
    "kolibri1",
    "laguna",
    "mimo_v2_flash",
    "minimax_m3_vl_text",
)
"""Families made of parts that others have too: their contract is `slow`."""


def random_rows(*shape):
    """The same random numbers in every test."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def slow_but(first, kinds):
    """`kinds`, of which all but `first` are slow."""
    return [k if k in first else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


FIRST = [kind for kind in KINDS if kind not in REPEATS]
every_family = pytest.mark.parametrize("kind", slow_but(FIRST, KINDS))


@cache
def original(kind):
    """transformers' own model; tests leave it as they found it."""
    return tiny_family(FAMILIES[kind])


def settings_of(kind):
    """LoRA on experts, and on attention where a family has some: see the notes of Inkling 2."""
    return replace(SETTINGS, attention=False) if kind in NO_ATTENTION else SETTINGS


@cache
def adapted(kind):
    """Ours; tests set the adapter and the budget they need."""
    return AdaptedModel(tiny_family(FAMILIES[kind]), settings_of(kind), NoRescaling())


def fresh(kind):
    """Ours with an adapter that changes nothing, at full budget."""
    model = adapted(kind)
    model.load(initial_adapter(model.layout, torch.Generator().manual_seed(0)))
    model.set_budget(model.full_top_k)
    return model


def trained(kind, random_adapter):
    """Ours with a random adapter, at full budget."""
    model = adapted(kind)
    model.load(random_adapter(model.layout))
    model.set_budget(model.full_top_k)
    return model


def logits_of(model, ids=IDS):
    return model.logits(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()

"""Total and active parameters of a published model, from the numbers of its config alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fedmoe.models.families.catalogue import Size
from fedmoe.models.families.family import Family
from fedmoe.models.families.layers import sparse_layers
from fedmoe.models.tasks import TASKS


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights: of a model, and of the part that a token meets."""

    total: int
    per_expert: int
    """Weights of one expert in every sparse layer."""
    num_experts: int
    top_k: int

    def active(self, top_k: int) -> int:
        """Return the weights that a token meets with `top_k` experts, embeddings included."""
        return self.total - (self.num_experts - top_k) * self.per_expert


def parameters_of(model: nn.Module, family: Family) -> Parameters:
    """Return the numbers of a model on any device, the meta device too."""
    layers = sparse_layers(model, family)
    of_experts = sum(p.numel() for layer in layers for p in layer.experts.parameters())
    num_experts = layers[0].num_experts
    total = sum(p.numel() for p in model.parameters())
    return Parameters(total, of_experts // num_experts, num_experts, layers[0].top_k)


def published(family: Family, size: Size) -> Parameters:
    """Return the numbers of a published model, built on the meta device without its weights."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family.model_type, **size.config)
    with torch.device("meta"):
        model = TASKS[family.task].build(config, torch.bfloat16)
    family.install(model)
    return parameters_of(model, family)


def rounded(number: int) -> str:
    """Return a number of parameters as people write it: 46.7 B, 800 M."""
    unit, letter = (1e9, "B") if number >= 1e9 else (1e6, "M")
    value = number / unit
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {letter}"

"""The experts that a client's own data activate: routed tokens in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fedmoe.data.text import Tokens
from fedmoe.models.adapted import AdaptedModel
from fedmoe.training.loss import mean_loss


def profile(
    model: AdaptedModel,
    rows: Sequence[Tokens],
    examples: int,
    batch_size: int,
    pad: int,
    rng: np.random.Generator,
) -> Int64[Tensor, "layers experts"]:
    """Tokens that each expert of each layer is given, on `examples` of `rows` at most.

    The model computes as it stands: its adapter, its k and the form of its frozen experts. Which
    examples, `rng` draws, each at most once; without rows nothing is counted.
    """
    drawn = [rows[i] for i in sorted(rng.permutation(len(rows))[:examples])]
    if not drawn:
        return torch.zeros(model.layout.num_layers, model.layout.num_experts, dtype=torch.int64)
    with model.counting() as counts:
        mean_loss(model, drawn, batch_size, pad)
    return counts.cpu()

"""Similarity of experts: linear CKA between their outputs for the same tokens."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor, nn

from fedmoe.models.gating.outputs import expert_output

STILL = 1e-4
"""Answers that vary by a smaller share of their size do not vary."""


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Centred kernel alignment of two sets of answers to the same tokens, a scalar in [0, 1].

    $$\frac{\lVert Y_c^T X_c \rVert_F^2}
      {\lVert X_c^T X_c \rVert_F \, \lVert Y_c^T Y_c \rVert_F}$$

    with $X_c$ the rows of `x` (tokens, width) minus their mean. 1 for answers that differ by a
    rotation, a scale and a shift; near 1 for any with fewer tokens than dimensions, so compare
    values of one number of tokens only. Where an answer does not vary it is 0.

    Source: Kornblith et al. 2019 (arXiv:1905.00414, eq. 3, linear kernel).
    """
    found = []
    for answers in (x, y):
        centred = answers - answers.mean(0)
        size = answers.detach().norm()
        if not centred.detach().norm() > STILL * size:  # rounding noise, whose gradient is infinite
            return (x.sum() + y.sum()) * 0.0
        found.append(centred / size)  # else the fourth powers below leave float32's range
    a, b = found
    across, within_a, within_b = (left.T @ right for left, right in ((b, a), (a, a), (b, b)))
    return across.square().sum() / (within_a.norm() * within_b.norm())


def co_activated(index: Tensor, num_experts: int, pairs: int) -> list[tuple[int, int, int]]:
    """The `pairs` pairs of experts that share the most tokens of `index` (tokens, slots).

    Returns (expert, expert, shared tokens), most first, ties by the experts' numbers; a pair that
    shares none is left out.
    """
    chosen = torch.zeros(len(index), num_experts + 1).scatter(1, index.cpu(), 1.0)[:, :num_experts]
    shared = chosen.T @ chosen
    found = [
        (a, b, int(shared[a, b])) for a, b in combinations(range(num_experts), 2) if shared[a, b]
    ]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:pairs]


@torch.no_grad()
def mean_pairwise_cka(experts: nn.Module, hidden: Tensor) -> float:
    """The mean linear CKA over all pairs of a layer's experts, each answering all of `hidden`.

    It is the measure of collapse: experts that answer alike give 1. Sums run in float64.
    """
    number = int(experts.num_experts)  # pyright: ignore[reportArgumentType]
    answers = [expert_output(experts, hidden, e).double() for e in range(number)]
    centred = [x - x.mean(0) for x in answers]
    within = [float((x.T @ x).norm()) for x in centred]
    total = 0.0
    for (x, norm_x), (y, norm_y) in combinations(zip(centred, within, strict=True), 2):
        total += float((y.T @ x).square().sum()) / max(norm_x * norm_y, 1e-300)
    return total / math.comb(number, 2)

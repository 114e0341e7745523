"""A weighted mean per expert that holds one float64 sum and a few updates, however many come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.blocks import Blocks
from fedmoe.errors import AggregationError
from fedmoe.wire import Update

TOGETHER = 4
"""Updates held at once: the sum travels to memory and back once for all of them. 8 would be a tenth
faster and hold 16 more bytes per value; no number of them changes a bit of the result."""


class Weights(NamedTuple):
    """A client's unnormalised weights in one round."""

    experts: Float[Tensor, "layers experts"]
    shared: float


def weighted_mean(
    adapter: Adapter, updates: Iterable[Update], weigh: Callable[[Update], Weights]
) -> Adapter:
    r"""The global adapter after every client's delta was averaged, expert by expert.

    $$W_{le} \leftarrow W_{le} + \sum_c \gamma_{cle} \Delta_{cle} \,/\, \sum_c \gamma_{cle}$$

    Where the weights of an expert sum to zero, nobody trained it: it stays bit-identical, never
    NaN. Sums run in float64, in the order of `updates`; callers pass them by client id, so that
    the result does not depend on who answered first. At most `TOGETHER` updates are alive.

    Raises:
        AggregationError: there are no updates, or a weight is negative or not finite.
    """
    blocks = Blocks.of(adapter.layout)
    # numpy 2 asks Linux for huge pages and torch 2.13 does not: 128 MB are first touched in
    # 22 ms in place of 66.
    descent = torch.from_numpy(np.zeros(adapter.layout.size))
    weight_sum = torch.zeros(adapter.layout.num_layers * adapter.layout.num_experts + 1).double()
    stream, num_updates = iter(updates), 0
    while group := list(islice(stream, TOGETHER)):
        weights = [_checked(weigh(update), update.client) for update in group]
        for weight in weights:
            weight_sum += weight
        _subtract(blocks, descent, [u.delta.flat for u in group], weights)
        num_updates += len(group)
        group.clear()  # before the next ones arrive
    if not num_updates:
        raise AggregationError("no client updates to average in this round")
    return _descended(adapter, blocks, descent, weight_sum)


def _subtract(blocks: Blocks, descent: Tensor, deltas: list[Tensor], weights: list[Tensor]) -> None:
    """`descent -= sum of weight * delta`, block by block, so that a block's sum stays in cache."""
    buffer = descent.new_empty(max(blocks.sizes, default=0))
    per_block = zip(
        blocks.cut(descent),
        zip(*map(blocks.cut, deltas), strict=True),
        zip(*map(blocks.weights, weights), strict=True),
        strict=True,
    )
    for into, parts, gammas in per_block:
        wide = buffer[: into.numel()].view_as(into)
        for part, gamma in zip(parts, gammas, strict=True):
            if gamma is not None:
                into.addcmul_(wide.copy_(part), gamma, value=-1)


def _descended(adapter: Adapter, blocks: Blocks, descent: Tensor, weight_sum: Tensor) -> Adapter:
    """`adapter` minus the mean: x - 0.0 is x to the bit, where -0.0 + 0.0 would be 0.0."""
    flat = torch.from_numpy(adapter.flat.numpy().copy())  # huge pages again
    moved = blocks.weights(weight_sum)
    for old, summed, weight in zip(blocks.cut(flat), blocks.cut(descent), moved, strict=True):
        if weight is not None:
            # Where one row's weight is zero its sum is zero too: no move.
            old.copy_(old - summed.div_(weight.where(weight > 0, 1)))
    return Adapter(adapter.layout, flat)


def _checked(weights: Weights, client: int) -> Float[Tensor, " owners"]:
    """The weights of all experts and then of shared parts, in one row."""
    values = [*weights.experts.flatten().tolist(), weights.shared]
    bad = [value for value in values if not 0 <= value < math.inf]
    if bad:
        raise AggregationError(f"client {client} has weight {bad[0]}; expected finite, 0 or more")
    return torch.tensor(values, dtype=torch.float64)

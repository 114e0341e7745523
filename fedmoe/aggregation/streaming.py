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
from fedmoe.messages.records import Update

TOGETHER = 4
"""Updates held at once, and added in one pass of the sum through memory. Grouping changes no bit of
the result."""
WEIGHT_BITS = 29
"""Significant bits that are kept of a weight. With the 24 of a float32 its product is exact in
float64: a processor that fuses it with the sum gets the bits of one that does not."""


class Weights(NamedTuple):
    """A client's unnormalised weights in one round."""

    experts: Float[Tensor, "layers experts"]
    shared: float


def weighted_mean(
    adapter: Adapter, updates: Iterable[Update], weigh: Callable[[Update], Weights]
) -> Adapter:
    r"""Return the global adapter after every client's delta was averaged, expert by expert.

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
        blocks.subtract(descent, [update.delta.flat for update in group], weights)
        num_updates += len(group)
        group.clear()  # before the next ones arrive
    if not num_updates:
        raise AggregationError("no client updates to average in this round")
    # Less the mean of its negative: x - 0.0 is x to the bit, where -0.0 + 0.0 would be 0.0.
    return Adapter(adapter.layout, blocks.descended(adapter.flat, descent, weight_sum))


def _checked(weights: Weights, client: int) -> Float[Tensor, " owners"]:
    """Return the weights of all experts and then of shared parts, in one row."""
    values = [*weights.experts.flatten().tolist(), weights.shared]
    bad = [value for value in values if not 0 <= value < math.inf]
    if bad:
        raise AggregationError(f"client {client} has weight {bad[0]}; expected finite, 0 or more")
    row = torch.tensor(values, dtype=torch.float64)
    # All but the last bits of float64's 53.
    return row.view(torch.int64).bitwise_and_(-(1 << (53 - WEIGHT_BITS))).view(torch.float64)

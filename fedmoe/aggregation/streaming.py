"""A weighted mean per expert that holds one float64 sum and a few updates, however many come.

It is a ratio of two sums over clients. So a regional server can add up its own clients, and the
server above it the regions' sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
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


@dataclass(eq=False)
class Sums:
    """All that a weighted mean needs of some clients, such as those of one region.

    Example:
        >>> layout = Layout.of([("q.A", (1, 2), None)], 0, num_experts=0, rank=1, alpha=1.0)
        >>> east = Sums(layout, torch.tensor([-2.0, 0.0]).double(), torch.ones(1).double(), 1)
        >>> west = Sums(layout, torch.tensor([-4.0, 4.0]).double(), torch.ones(1).double(), 1)
        >>> east.add(west)
        >>> mean_of(Adapter(layout, torch.zeros(2)), east).flat
        tensor([ 3., -2.])
    """

    layout: Layout
    """Of the updates."""
    descent: Float[Tensor, " values"]
    """Less the sum of weight times delta, float64."""
    weights: Float[Tensor, " owners"]
    """The sum of weights, float64: of every expert of every layer, then of shared parts."""
    num_updates: int

    def add(self, other: Sums) -> None:
        """Add the sums over other clients, in place.

        Raises:
            AggregationError: their updates have other tensors.
        """
        if not other.num_updates:
            return
        if not self.num_updates:
            # Sums over nobody do not know which tensors others send.
            self.layout, self.num_updates = other.layout, other.num_updates
            self.descent, self.weights = other.descent.clone(), other.weights.clone()
            return
        if other.layout != self.layout:
            raise AggregationError(
                f"sums over adapters of {self.layout.size:,} and of {other.layout.size:,} values "
                "cannot be added; all regions of a round must have been sent the same task"
            )
        self.descent += other.descent
        self.weights += other.weights
        self.num_updates += other.num_updates


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
    return mean_of(adapter, partial_sums(adapter.layout, updates, weigh))


def partial_sums(
    layout: Layout, updates: Iterable[Update], weigh: Callable[[Update], Weights]
) -> Sums:
    """Return the sums over some clients' updates; zeros without any. See `weighted_mean`."""
    blocks = Blocks.of(layout)
    # Memory is in huge pages (see `adapter.new_flat`) only if its first touch is a write: Linux
    # cuts pages that are read first, as those of numpy's zeros would be here.
    descent = torch.from_numpy(np.empty(layout.size)).zero_()
    weight_sum = torch.zeros(layout.num_layers * layout.num_experts + 1).double()
    stream, num_updates = iter(updates), 0
    while group := list(islice(stream, TOGETHER)):
        weights = [_checked(weigh(update), update.client) for update in group]
        for weight in weights:
            weight_sum += weight
        blocks.subtract(descent, [update.delta.flat for update in group], weights)
        num_updates += len(group)
        group.clear()  # before the next ones arrive
    return Sums(layout, descent, weight_sum, num_updates)


def mean_of(adapter: Adapter, sums: Sums) -> Adapter:
    """Return the global adapter after the mean delta of the sums.

    Raises:
        AggregationError: they are over no update.
    """
    if not sums.num_updates:
        raise AggregationError("no client updates to average in this round")
    blocks = Blocks.of(adapter.layout)
    # Less the mean of its negative: x - 0.0 is x to the bit, where -0.0 + 0.0 would be 0.0.
    return Adapter(adapter.layout, blocks.descended(adapter.flat, sums.descent, sums.weights))


def _checked(weights: Weights, client: int) -> Float[Tensor, " owners"]:
    """Return the weights of all experts and then of shared parts, in one row."""
    values = [*weights.experts.flatten().tolist(), weights.shared]
    bad = [value for value in values if not 0 <= value < math.inf]
    if bad:
        raise AggregationError(f"client {client} has weight {bad[0]}; expected finite, 0 or more")
    row = torch.tensor(values, dtype=torch.float64)
    # All but the last bits of float64's 53.
    return row.view(torch.int64).bitwise_and_(-(1 << (53 - WEIGHT_BITS))).view(torch.float64)

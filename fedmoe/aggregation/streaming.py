"""A weighted mean per expert that holds one float64 sum, however many clients there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.errors import AggregationError
from fedmoe.wire import Update


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
    the result does not depend on who answered first.

    Raises:
        AggregationError: there are no updates, or a weight is negative or not finite.
    """
    layout = adapter.layout
    total = torch.zeros(layout.size, dtype=torch.float64)
    expert_weight = torch.zeros(layout.num_layers, layout.num_experts, dtype=torch.float64)
    shared_weight, num_updates = 0.0, 0
    for update in updates:
        weights = weigh(update)
        _check(weights, update.client)
        expert_weight += weights.experts
        shared_weight += weights.shared
        num_updates += 1
        for (entry, into), (_, delta) in zip(
            layout.views(total), layout.views(update.delta.flat), strict=True
        ):
            if entry.layer is None:
                into.add_(delta, alpha=weights.shared)
            else:
                into.addcmul_(delta.double(), _rows(weights.experts[entry.layer], delta))
    if not num_updates:
        raise AggregationError("no client updates to average in this round")
    return _divided(adapter, total, expert_weight, shared_weight)


def _divided(adapter: Adapter, total: Tensor, experts: Tensor, shared: float) -> Adapter:
    flat = adapter.flat.clone()
    layout = adapter.layout
    for (entry, old), (_, summed) in zip(layout.views(flat), layout.views(total), strict=True):
        weight = (
            experts.new_tensor(shared) if entry.layer is None else _rows(experts[entry.layer], old)
        )
        # Adding a zero delta would turn -0.0 into 0.0, so the old value is kept by choice.
        moved = (old.double() + summed / weight).float()
        old.copy_(torch.where((weight > 0) & (summed != 0), moved, old))
    return Adapter(layout, flat)


def _rows(per_expert: Tensor, like: Tensor) -> Tensor:
    """(experts,) shaped to broadcast over the rest of an expert tensor."""
    return per_expert.view(-1, *[1] * (like.dim() - 1))


def _check(weights: Weights, client: int) -> None:
    values = [*weights.experts.flatten().tolist(), weights.shared]
    bad = [value for value in values if not 0 <= value < math.inf]
    if bad:
        raise AggregationError(f"client {client} has weight {bad[0]}; expected finite, 0 or more")

"""Median: every value of an expert is the middle one of those that its users sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.strategy import Strategy
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class Median(Strategy):
    r"""Move every value by the median over the clients that used its expert.

    $$W_{ji} \leftarrow W_{ji} + \mathrm{median} \{ \Delta_{cji} : a_{cj} > 0 \}$$

    coordinate by coordinate; of an even number, the mean of the two in the middle. `a_cj` are the
    tokens of client c that reached expert j: an expert that nobody used keeps every bit. All
    clients vote on shared parts. A client has one vote, whatever its size.

    It withstands any values from fewer than half of an expert's voters. What breaks it: clients
    report their own counts, so liars may vote on every expert, and are the majority of a rare one;
    an expert of one or two voters has no protection at all; small lies within the spread of honest
    clients still bias it; and where honest clients differ much, it is not their mean.

    Source: Yin et al. 2018 (arXiv:1803.01498, definition 1), on gradients; ours takes the deltas
    of LoRA factors, per expert.
    """

    name: Literal["median"] = "median"
    robust: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        if not (held := list(updates)):
            raise AggregationError("no client updates to combine in this round")
        made, counts = adapter.copy(), torch.stack([update.counts for update in held])
        sent = [update.delta.views() for update in held]
        for entry, view in made.layout.views(made.flat):
            values = torch.stack([views[entry.name] for views in sent])
            if entry.layer is None:
                view += middle(values)
                continue
            used = counts[:, entry.layer] > 0
            for expert in used.any(0).nonzero().flatten().tolist():
                view[expert] += middle(values[used[:, expert], expert])
        return made


def middle(values: Tensor) -> Tensor:
    """Return the median over the first axis."""
    ordered, number = values.sort(dim=0).values, len(values)
    return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2

"""Replication: what low-rank clients lack is filled in from the clients of the highest rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.slices import SliceSums
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class Replication(Mean):
    r"""Average over all clients, each padded with the mean of the highest-rank clients.

    $$W_i \leftarrow \frac{\sum_{c:\, r_c > i} n_c W_{c,i} + \sum_{c:\, r_c \le i} n_c \bar H_i}
                          {\sum_c n_c}, \qquad
      \bar H_i = \frac{\sum_{c:\, r_c = R} n_c W_{c,i}}{\sum_{c:\, r_c = R} n_c}$$

    R is the rank of the global adapter. Where no client of rank R took part, the padding is the
    global adapter itself.

    Source: Byun and Lee 2024 (arXiv:2406.17477), from second-hand notes. Theirs pads from one
    high-rank client; the mean over them is our choice.
    """

    name: Literal["replication"] = "replication"
    maskable: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        everyone, highest = SliceSums(adapter), SliceSums(adapter)
        for update in updates:
            everyone.add(update, self.weigh(update))
            if update.delta.layout.rank == adapter.layout.rank:
                highest.add(update, self.weigh(update))
        if not everyone.num_updates:
            raise AggregationError("no client updates to average in this round")
        made = adapter.copy()
        sums = zip(everyone.sums, highest.sums, strict=True)
        for (entry, view), (total, top) in zip(made.layout.views(made.flat), sums, strict=True):
            held, top_held = everyone.held(entry), highest.held(entry)
            # Every client holds the first component.
            weight = held.amax(entry.rank_axis, keepdim=True) if entry.rank_axis else held
            padding = (weight - held) * top / top_held.where(top_held > 0, 1)
            mean = (total + padding) / weight.where(weight > 0, 1)
            view.copy_(torch.where(mean != 0, view + mean, view.double()))
        return made

"""FLoRA: clients' factors are stacked, which is exact, and merged into what all compute with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.merged import Merged
from fedmoe.aggregation.products import (
    Pair,
    Trained,
    mean_of,
    nearest,
    others,
    pairs,
    reached,
    trained,
)
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class FLoRA(Merged):
    r"""Add the stack of the clients' factors to the merged part; every round starts afresh.

    $$W \leftarrow W + \sum_c p_c \, \frac{\alpha}{r_c} B_c A_c
      = W + [\, p_1 s_1 B_1 \; \dots \; p_C s_C B_C \,] \, [\, A_1; \dots; A_C \,]$$

    Clients train new factors in every round, from the run's first random `A` and `B = 0`.

    Source: Wang et al. 2024 (arXiv:2409.05976). Theirs merges into the base weights on every
    client, and a client downloads the stack, whose size grows with the number of clients. Ours
    keeps the merged part as factors of rank `merged_rank`, and a task carries all of it.
    """

    name: Literal["flora"] = "flora"
    exact: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True
    continues: ClassVar[bool] = False

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        def start(layout):
            return self.start(adapter, layout)

        clients = trained(updates, start, self.size)
        made = adapter.copy()
        views = made.views()
        for pair in pairs(adapter.layout):
            a, b = self.parts(views, pair)
            new_a, new_b = self.stacked(clients, pair, adapter, a, b)
            moved = reached(clients, pair)
            a.copy_(torch.where(moved, new_a, a))
            b.copy_(torch.where(moved, new_b, b))
        for entry in others(adapter.layout):
            views[entry.name].copy_(mean_of(clients, entry.name))
        return made

    def stacked(
        self, clients: list[Trained], pair: Pair, state: Adapter, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The merged factors `a` and `b` with the clients' products added."""
        best = nearest(clients, pair, state, self.merged_rank, [(1.0, b, a)])
        return best.A, best.B

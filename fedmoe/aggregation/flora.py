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
    client, which in each round downloads that round's stack, sum_c r_c components, and that of
    every round that it missed, and draws its own fresh factors. Ours keeps the sum of all stacks
    as factors, so that clients keep no base: a task carries as many merged components as that sum
    has, at most `merged_rank`, and the r fresh ones. That is none and r in round 1 and sum_c r_c
    and r in round 2; later more than theirs where `merged_rank` + r is over a round's sum_c r_c,
    and less where it is not. A ledger counts the bytes of ours as they are sent.
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

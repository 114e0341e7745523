"""FlexLoRA: clients' products are averaged, and each client gets the SVD cut to its rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch

from fedmoe.adapter import Adapter, resized
from fedmoe.aggregation.mean import BySize
from fedmoe.aggregation.product_optimizer import step_products
from fedmoe.aggregation.products import mean_of, nearest, others, pairs, reached, trained
from fedmoe.aggregation.server_optimizer import Memory, Rule
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class FlexLoRA(BySize):
    r"""Average products of any rank, and keep the best factors of the largest rank.

    $$\overline W = \sum_c p_c \, \frac{\alpha}{r_c} B_c A_c = U S V^T, \qquad
      B = U_r S_r^{1/2}, \quad A = S_r^{1/2} V_r^T$$

    A client of rank r_c is sent the first r_c components, which are the best of that rank. The sum
    is never formed (see `factored`). A component whose singular value is zero keeps its row of `A`
    and a zero column of `B`, or it could never be trained again.

    Source: Bai et al. 2024 (arXiv:2402.11505); its code forms the sum and leaves `alpha / r_c` out.
    """

    name: Literal["flexlora"] = "flexlora"
    exact: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True
    continues: ClassVar[bool] = False

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        clients = trained(updates, lambda layout: resized(adapter, layout), self.size)
        made = adapter.copy()
        views = made.views()
        for pair in pairs(adapter.layout):
            a, b = views[pair.A], views[pair.B]
            best = nearest(clients, pair, adapter, adapter.layout.rank)
            alive = best.A.any(-1, keepdim=True)
            moved = reached(clients, pair)
            a.copy_(torch.where(moved & alive, best.A, a))
            b.copy_(torch.where(moved, best.B, b))
        for entry in others(adapter.layout):
            views[entry.name].copy_(mean_of(clients, entry.name))
        return made

    def step(
        self, rule: Rule, old: Adapter, proposed: Adapter, memory: Memory
    ) -> tuple[Adapter, Memory]:
        """On products."""
        return step_products(rule, old, proposed, memory, free=old.layout.rank)

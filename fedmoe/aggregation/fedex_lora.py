"""FedEx-LoRA: what the mean of the factors misses goes into a merged part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch

from fedmoe.adapter import Adapter
from fedmoe.aggregation.merged import Merged
from fedmoe.aggregation.products import mean_of, nearest, others, pairs, reached, trained
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class FedExLoRA(Merged):
    r"""Average the factors, and add the residual of their product to the merged part.

    $$W \leftarrow W + s \Big( \sum_c p_c B_c A_c - \bar B \bar A \Big), \qquad
      \bar A = \sum_c p_c A_c, \quad \bar B = \sum_c p_c B_c$$

    so that the sum of both parts is the exact mean. The residual is never formed: it has the
    factors `[p_c B_c, -mean B]` and `[A_c; mean A]`.

    Source: Singhal et al. 2024 (arXiv:2410.09432, eq. 12). Theirs adds a dense residual to the
    base of every client; ours keeps the best factors of rank `merged_rank` of all residuals so far.
    """

    name: Literal["fedex_lora"] = "fedex_lora"
    exact: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        clients = trained(updates, lambda layout: self.start(adapter, layout), self.size)
        made = adapter.copy()
        views = made.views()
        for pair in pairs(adapter.layout):
            (merged_a, merged_b), (a, b) = self.parts(views, pair), self.fresh(views, pair)
            moved = reached(clients, pair)
            mean_a = torch.where(moved, mean_of(clients, pair.A).float(), a)
            mean_b = torch.where(moved, mean_of(clients, pair.B).float(), b)
            also = [(1.0, merged_b, merged_a), (-1.0, mean_b, mean_a)]
            best = nearest(clients, pair, adapter, self.merged_rank, also)
            merged_a.copy_(torch.where(moved, best.A, merged_a))
            merged_b.copy_(torch.where(moved, best.B, merged_b))
            a.copy_(mean_a)
            b.copy_(mean_b)
        for entry in others(adapter.layout):
            views[entry.name].copy_(mean_of(clients, entry.name))
        return made

"""LoRA-FAIR: a correction of the mean B brings the product of the means to the mean product."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import BySize
from fedmoe.aggregation.products import mean_of, others, pairs, reached, shares, trained
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class LoRAFair(BySize):
    r"""Average the factors and correct `B`.

    $$\Delta B = \arg\min_X \Big\| \sum_c p_c B_c A_c - (\bar B + X) \bar A \Big\|_F^2
      + \lambda \|X\|_F^2
      = \Big(\sum_c p_c B_c A_c \bar A^T - \bar B \bar A \bar A^T\Big)
        (\bar A \bar A^T + \lambda I)^{-1}$$

    Clients start from the mean `A` and the corrected `B`. All products in the closed form are r
    wide.

    Source: Bian et al. 2024 (arXiv:2411.14961), from second-hand notes: theirs minimises a
    similarity by gradient descent; the squared error, which has a closed form, is our choice.
    """

    name: Literal["lora_fair"] = "lora_fair"
    regularisation: Annotated[float, Field(gt=0)] = 0.01
    """The lambda; larger stays nearer to the mean B."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        clients = trained(updates, lambda _: adapter, self.size)
        made = adapter.copy()
        views = made.views()
        for pair in pairs(adapter.layout):
            a, b = views[pair.A], views[pair.B]
            mean_a, mean_b = mean_of(clients, pair.A), mean_of(clients, pair.B)
            goal = torch.zeros_like(mean_b)
            weights = shares(clients, pair, adapter.layout.num_experts)
            for client, weight in zip(clients, weights, strict=True):
                low = client[pair.A].double() @ mean_a.mT
                goal += weight[..., None, None] * (client[pair.B].double() @ low)
            square = mean_a @ mean_a.mT
            ridge = square + self.regularisation * torch.eye(square.shape[-1], dtype=square.dtype)
            shift = torch.linalg.solve(ridge, goal - mean_b @ square, left=False)
            moved = reached(clients, pair)
            a.copy_(torch.where(moved, mean_a.float(), a))
            b.copy_(torch.where(moved, (mean_b + shift).float(), b))
        for entry in others(adapter.layout):
            views[entry.name].copy_(mean_of(clients, entry.name))
        return made

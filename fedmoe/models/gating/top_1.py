"""Top-1: one expert per token, whatever the budget."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedmoe.models.gating.rule import Call, Choice, Rule, keep_first
from fedmoe.section import section


@section
class Top1Gating(Rule):
    r"""Each token takes the one expert of the largest logit: $i = \arg\max_j s_j$.

    A budget of k = 1 gives the same; this is for runs in which every client, and evaluation too,
    uses one expert. Its weight is $p_i$; in a model that renormalises it is 1, which teaches a
    router nothing (as at k = 1 there).

    Source: Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, sec. 2.1), without its
    capacity: no token is dropped.
    """

    name: Literal["top_1"] = "top_1"
    exact_counts: ClassVar[bool] = False

    def per_token(self, top_k: int) -> tuple[float, float]:
        return 1.0, 1.0

    def choose(self, call: Call) -> Choice | None:
        index = call.shares().topk(call.top_k, dim=-1).indices
        first = torch.arange(call.top_k, device=index.device) < 1
        return Choice(call.logits, keep_first(index, first.expand_as(index), call.num_experts))

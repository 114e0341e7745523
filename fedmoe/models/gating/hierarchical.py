"""Hierarchical gating: first groups of experts, then experts within them."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from fedmoe.models.gating.rule import Call, Choice, Rule
from fedmoe.section import section


@section
class HierarchicalGating(Rule):
    r"""Each token takes its best groups, and in them its k best experts.

    Neighbouring experts form `num_groups` groups of one size. With p the softmax of the logits,

    $$P_g = \sum_{i \in g} p_i, \quad \mathcal{G} = \mathrm{Top}_m(P), \quad
      \text{chosen} = \mathrm{Top}_k\{p_i : i \in g \in \mathcal{G}\}$$

    A token's experts then sit in m groups at most, say on m devices. With m = `num_groups` it is
    the model's own top-k.

    Source: the two-level gate of Shazeer et al. 2017 (arXiv:1701.06538, app. B), whose product
    $P_g \cdot p_{i|g}$ is $p_i$ here because one router gives both levels; choosing groups first is
    DeepSeek-V2's (arXiv:2405.04434, sec. 2.2.2), which takes a group's best expert for $P_g$.
    """

    name: Literal["hierarchical"] = "hierarchical"
    num_groups: Annotated[int, Field(ge=1)] = 4
    """Groups that the experts are divided into."""
    chosen_groups: Annotated[int, Field(ge=1)] = 2
    """The m: groups that a token's experts may come from."""

    def misfit(self, num_experts: int, full_top_k: int) -> str | None:
        if num_experts % self.num_groups:
            return f"gating.num_groups {self.num_groups} does not divide {num_experts} experts"
        if self.chosen_groups > self.num_groups:
            return (
                f"gating.chosen_groups {self.chosen_groups} is over gating.num_groups, which is "
                f"{self.num_groups}"
            )
        within = self.chosen_groups * num_experts // self.num_groups
        if within < full_top_k:
            return (
                f"{self.chosen_groups} of {self.num_groups} groups hold {within} experts; expected "
                f"at least top_k, {full_top_k}: raise gating.chosen_groups"
            )
        return None

    def choose(self, call: Call) -> Choice | None:
        shares = call.shares()
        groups = shares.view(len(shares), self.num_groups, -1)
        best = groups.sum(-1).topk(self.chosen_groups, dim=-1).indices
        inside = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, True)
        among = groups.masked_fill(~inside.unsqueeze(-1), -1.0).view_as(shares)
        return Choice(call.logits, among.topk(call.top_k, dim=-1).indices)

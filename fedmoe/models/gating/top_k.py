"""Top-k: the model's own routers, at the budget's k."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedmoe.models.gating.rule import Call, Choice, Rule
from fedmoe.section import section


@section
class TopKGating(Rule):
    """Each token takes the k experts of the largest logits; routers are left as they are.

    Source: Shazeer et al. 2017 (arXiv:1701.06538), without noise, as Mixtral and OLMoE route.
    """

    name: Literal["top_k"] = "top_k"
    own: ClassVar[bool] = True

    def choose(self, call: Call) -> Choice | None:
        return None

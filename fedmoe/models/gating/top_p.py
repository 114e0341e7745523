"""Top-p: as many experts as it takes to reach a threshold, at most the budget's k."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedmoe.models.gating.rule import Call, Choice, Rule, keep_first
from fedmoe.section import section


@section
class TopPGating(Rule):
    r"""Each token takes its best experts until their probabilities sum to `threshold`.

    With $p_{(1)} \ge p_{(2)} \ge \dots$ the sorted softmax of the logits over all experts, the
    token takes the first $\min(k, \min\{j : p_{(1)} + \dots + p_{(j)} \ge \theta\})$: at least one,
    at most the budget's k. A sure router thus computes less; budgets price the most it can.

    Source: dynamic routing by threshold (Huang et al. 2024, arXiv:2403.07652), without its entropy
    loss; the budget's cap is ours.
    """

    name: Literal["top_p"] = "top_p"
    exact_counts: ClassVar[bool] = False
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability that a token's experts are to hold together; 1 takes k experts."""

    def per_token(self, top_k: int) -> tuple[float, float]:
        return 1.0, float(top_k)

    def choose(self, call: Call) -> Choice | None:
        best = call.shares().topk(call.top_k, dim=-1)
        before = best.values.cumsum(-1) - best.values
        before[..., 0] = -1.0  # the best one always: a tiny threshold is 0 in float32
        kept = (before < self.threshold) | (self.threshold == 1)  # sure routers' sums round to 1
        return Choice(call.logits, keep_first(best.indices, kept, call.num_experts))

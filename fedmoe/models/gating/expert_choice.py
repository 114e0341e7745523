"""Expert choice: in training, each expert takes the tokens that want it most."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fedmoe.models.gating.rule import Call, Choice, Rule
from fedmoe.section import section


@section
class ExpertChoiceGating(Rule):
    r"""In training, every expert takes the $\lfloor n k / E \rfloor$ tokens of its largest shares.

    With $S = \mathrm{softmax}(X W)$ over the n tokens of a micro-batch, padding left out, expert i
    takes $\mathrm{Top}_c(S_{\cdot i})$, $c = \lfloor n k / E \rfloor$: loads are equal, a token
    reaches any number of experts, and k on average at most. A micro-batch of fewer than E / k
    tokens is routed by its tokens.

    It is not causal: whether an expert takes a token depends on later tokens of the sequence, and
    on other sequences, which a model that writes word by word does not have. It serves to train
    with an even load; evaluation and answers use the router's own top-k, so that there is a gap
    between the two that a run has to pay for. The weights are the router's own rule.

    Source: Zhou et al. 2022 (arXiv:2202.09368, eq. 1-3; its sec. 5 names the limit).
    """

    name: Literal["expert_choice"] = "expert_choice"
    serves: ClassVar[bool] = False
    exact_counts: ClassVar[bool] = False

    def per_token(self, top_k: int) -> tuple[float, float]:
        # Where n k >= E, the floor keeps more than half of n k / E.
        return top_k / 2, float(top_k)

    def choose(self, call: Call) -> Choice | None:
        if call.turn is None:
            return None
        shares, number = call.shares(), call.num_experts
        if call.valid is not None:
            shares = shares.masked_fill(~call.valid.unsqueeze(1), -1.0)
        tokens = len(shares) if call.valid is None else int(call.valid.sum())
        capacity = tokens * call.top_k // number
        if not capacity:
            return None
        taken = torch.zeros_like(shares, dtype=torch.bool)
        taken.scatter_(0, shares.topk(capacity, dim=0).indices, True)
        width = int(taken.sum(1).max())
        best = shares.masked_fill(~taken, -1.0).topk(width, dim=-1)
        return Choice(call.logits, best.indices.masked_fill(best.values < 0, number))

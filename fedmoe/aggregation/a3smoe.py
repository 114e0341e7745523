"""A3SMoE: FLAME's forerunner, with weights proportional to activation frequency."""

from __future__ import annotations

from typing import Literal

from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.streaming import Weights
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class A3SMoE(Mean):
    r"""Average per expert, by data size times activation frequency.

    $$\gamma_{cj} = n_c \, a_{cj} / S_c$$

    `a_cj` tokens of client c that reached expert j, `S_c` its tokens: FLAME at temperature 1.
    Clients use their own `k_c` in training and in evaluation, as in every run here.

    Source: "A3SMoE", ICLR 2025 workshop (OpenReview IwNOUYgtuz), from its abstract: it names the
    two quantities, the product is our reading.
    """

    name: Literal["a3smoe"] = "a3smoe"

    def weigh(self, update: Update) -> Weights:
        """`n a / S` for experts, `n` for shared parts."""
        n = self.size(update)
        return Weights(n * update.counts.double() / update.tokens, n)

"""FLoRIST: FLoRA's stack, cut where the singular values have enough energy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.flora import FLoRA
from fedmoe.aggregation.products import Pair, Trained, nearest
from fedmoe.section import section


@section
class FLoRIST(FLoRA):
    r"""Keep the fewest components p of the sum that hold a share tau of its energy.

    $$p = \min \Big\{ q : \sum_{i \le q} \sigma_i^2 \ge \tau \sum_i \sigma_i^2 \Big\}$$

    p is chosen per weight and expert, at most `merged_rank`. The SVD is that of the stacked
    factors; the sum is never formed. Exact at tau = 1 alone.

    Source: Ramesh et al. 2025 (arXiv:2506.09199), from second-hand notes. Where we differ: the
    threshold applies to the sum of all rounds, and components beyond p are sent as zeros, so the
    bytes of our messages do not fall with p.
    """

    name: Literal["florist"] = "florist"  # pyright: ignore[reportIncompatibleVariableOverride]
    tau: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the squared singular values that is kept."""

    def stacked(
        self, clients: list[Trained], pair: Pair, state: Adapter, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        best = nearest(clients, pair, state, self.merged_rank, [(1.0, b, a)])
        energy = best.values.square()
        before = energy.cumsum(-1) - energy  # of the components in front of each
        kept = (before < self.tau * energy.sum(-1, keepdim=True))[..., : self.merged_rank]
        short = self.merged_rank - kept.shape[-1]
        keep = kept.new_zeros(*kept.shape[:-1], self.merged_rank)
        keep[..., : self.merged_rank - short] = kept
        return best.A * keep.unsqueeze(-1), best.B * keep.unsqueeze(-2)

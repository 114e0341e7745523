"""FLoRIST: FLoRA's stack, cut where the singular values have enough energy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
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
    threshold applies to the sum of all rounds, and a task carries the merged part at the largest p
    of all weights and experts, so that its bytes fall with that one alone.
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
        keep = before < self.tau * energy.sum(-1, keepdim=True)
        keep = torch.nn.functional.pad(keep, (0, self.merged_rank - keep.shape[-1]))
        return best.A.where(keep.unsqueeze(-1), 0), best.B.where(keep.unsqueeze(-2), 0)

"""FedAvg: every client's update weighs as much as the client has examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from fedmoe.adapter import Adapter
from fedmoe.aggregation.streaming import Weights, weighted_mean
from fedmoe.section import section
from fedmoe.wire import Update


@section
class FedAvg:
    r"""Average all clients by data size, whether or not they used an expert.

    $$\gamma_{cj} = n_c$$

    Source: McMahan et al. 2017 (arXiv:1602.05629, Alg. 1), on LoRA factors as in FedIT
    (arXiv:2305.05644): `A` and `B` are averaged apart, so mean B times mean A is not the mean of
    BA. Of an expert that some clients never used, the update is diluted.
    """

    name: Literal["fedavg"] = "fedavg"

    def combine(self, adapter: Adapter, updates: Iterable[Update]) -> Adapter:
        """The next global adapter; see `weighted_mean` for promises and errors."""
        return weighted_mean(adapter, updates, self.weigh)

    def weigh(self, update: Update) -> Weights:
        """`n_c` for every expert, `n_c` for shared parts."""
        n = float(update.examples)
        return Weights(torch.full(update.counts.shape, n, dtype=torch.float64), n)

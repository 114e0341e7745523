"""FedAvg: every client's update weighs as much as the client has examples."""

from __future__ import annotations

from typing import Literal

from fedmoe.aggregation.mean import Mean
from fedmoe.section import section


@section
class FedAvg(Mean):
    r"""Average all clients by data size, whether or not they used an expert.

    $$\gamma_{cj} = n_c$$

    Source: McMahan et al. 2017 (arXiv:1602.05629, Alg. 1), on LoRA factors as in FedIT
    (arXiv:2305.05644): `A` and `B` are averaged apart, so mean B times mean A is not the mean of
    BA. The update of an expert that some clients never used is diluted.

    Example:
        >>> FedAvg().linear, FedAvg().mixed_ranks
        (True, False)
    """

    name: Literal["fedavg"] = "fedavg"

"""raFLoRA: every rank component is averaged over the clients that hold it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.slices import slice_mean
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class RaFLoRA(Mean):
    r"""Cut to the client's rank on the way down; average component by component on the way up.

    $$W_i \leftarrow \sum_{c:\, r_c > i} n_c W_{c,i} \,\Big/ \sum_{c:\, r_c > i} n_c$$

    so that low-rank clients do not dilute the components that they lack. With one rank for all it
    is FedAvg. `B` is rescaled by the ratio of the `alpha / r`.

    Source: raFLoRA, from second-hand notes: rank-partitioned averaging.
    """

    name: Literal["raflora"] = "raflora"
    maskable: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        return slice_mean(adapter, updates, self.weigh)

"""Median: every value of an expert moves by the middle one of those that its users sent."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from fedmoe.aggregation.robust.coordinates import Coordinates
from fedmoe.section import section


@section
class Median(Coordinates):
    r"""Move every value by the median over the clients that used its expert.

    $$W_{ji} \leftarrow W_{ji} + \mathrm{median} \{ \Delta_{cji} : a_{cj} > 0 \}$$

    coordinate by coordinate; of an even number, the mean of the two in the middle. `a_cj` are the
    tokens of client c that reached expert j: an expert that nobody used keeps every bit. All
    clients vote on shared parts. A client has one vote, whatever its size and the strategy; only
    where two or fewer report an expert, their mean is taken, clipped and capped.

    It withstands any values from fewer than half of an expert's voters. What breaks it: clients
    report their own counts, so liars may vote on every expert, and are the majority of a rare one;
    small lies within the spread of honest clients still bias it; and where honest clients differ
    much, it is not their mean.

    Source: Yin et al. 2018 (arXiv:1803.01498, definition 1), on gradients; ours takes the deltas
    of the LoRA factors A and B, not of their product, per expert.
    """

    name: Literal["median"] = "median"
    withstands: ClassVar[str] = "values"

    def middle(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, ...]:
        ordered, number = values.sort(dim=0).values, len(values)
        return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2

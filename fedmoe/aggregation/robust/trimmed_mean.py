"""Trimmed mean: of every value the largest and the smallest that were sent are left out."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fedmoe.aggregation.robust.coordinates import Coordinates
from fedmoe.section import section


@section
class TrimmedMean(Coordinates):
    r"""Move every value by the mean of what its expert's users sent, without the f extreme ones.

    $$W_{ji} \leftarrow W_{ji} + \frac{1}{m - 2f} \sum_{k = f + 1}^{m - f} \Delta_{(k) ji}$$

    with the m reporters' values in order, coordinate by coordinate. One vote each, whatever a
    client's size. It withstands any values from f of an expert's reporters; an expert with fewer
    than 2 f + 3 is averaged, clipped and capped.

    Source: Yin et al. 2018 (arXiv:1803.01498, definition 2, with its beta = f / m), on gradients;
    ours takes the deltas of the LoRA factors A and B, not of their product, per expert.
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"
    withstands: ClassVar[str] = "values"
    liars: Annotated[int, Field(ge=0)] = 1
    """The f: how many of an expert's reporters may lie."""

    @property
    def needed(self) -> int:
        return 2 * self.liars + 3

    def middle(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, ...]:
        f = self.liars
        return values.sort(dim=0).values[f : len(values) - f].double().mean(0).to(values.dtype)

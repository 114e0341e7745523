"""Krum and Multi-Krum: only the updates that lie close to their neighbours count."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from fedmoe.aggregation.robust.geometry import gram
from fedmoe.aggregation.robust.guarded import Guarded, shrunk
from fedmoe.aggregation.robust.rule import Centre
from fedmoe.aggregation.robust.terms import Choice, Terms, redistributed
from fedmoe.section import section


@section
class ByNeighbours(Guarded):
    """Base of Krum and Multi-Krum, which differ in how many updates they choose."""

    withstands: ClassVar[str] = "product"
    liars: Annotated[int, Field(ge=0)] = 1
    """The f: how many of an expert's reporters may lie."""

    @property
    def needed(self) -> int:
        return 2 * self.liars + 3

    def number(self, reporters: Int[Tensor, " owners"]) -> Int[Tensor, " owners"]:
        """Return how many of an expert's reporters are chosen."""
        raise NotImplementedError

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        inner, reporters = gram(terms.state, shrunk(terms, guarded)), terms.used.sum(0)
        chosen = nearest(distances(inner), terms.used, self.liars, self.number(reporters))
        votes = chosen.double() * guarded.weights
        return redistributed(terms, guarded, votes, reporters >= self.needed)


@section
class MultiKrum(ByNeighbours):
    r"""Average, expert by expert, the m - f updates of the lowest Krum scores.

    $$s_i = \sum_{j \in N_i} \|P_i - P_j\|^2$$

    over the m - f - 2 nearest neighbours $N_i$ of an update among the m reporters of the expert,
    where P is the change of the product BA (`geometry`), after clipping. Those who are chosen share
    the reporters' weight by their own (capped) weights. Equal scores go to the lower client id.
    An expert with fewer than 2 f + 3 reporters is averaged, clipped and capped.

    Source: Blanchard et al. 2017 (NIPS, arXiv:1703.02757, section 4 and Multi-Krum in section 6),
    on whole gradients with equal weights; ours is per expert, of the product.
    """

    name: Literal["multi_krum"] = "multi_krum"

    def number(self, reporters: Int[Tensor, " owners"]) -> Int[Tensor, " owners"]:
        return reporters - self.liars


@section
class Krum(ByNeighbours):
    r"""Take, expert by expert, the one update of the lowest Krum score; see `MultiKrum`.

    Source: Blanchard et al. 2017 (arXiv:1703.02757, section 4), as `MultiKrum`.
    """

    name: Literal["krum"] = "krum"

    def number(self, reporters: Int[Tensor, " owners"]) -> Int[Tensor, " owners"]:
        return torch.ones_like(reporters)


def distances(
    inner: Float[Tensor, "owners clients clients"],
) -> Float[Tensor, "owners clients clients"]:
    """Return the squared distances of all pairs, from their inner products."""
    squares = inner.diagonal(dim1=1, dim2=2)
    return (squares[:, :, None] + squares[:, None, :] - 2 * inner).clamp(min=0)


def nearest(
    apart: Float[Tensor, "owners clients clients"],
    used: Bool[Tensor, "clients owners"],
    liars: int,
    number: Tensor,
) -> Bool[Tensor, "clients owners"]:
    """Return the `number` of each owner's reporters with the lowest Krum scores."""
    there = used.T
    far = torch.where(there[:, None, :] & there[:, :, None], apart, torch.inf)
    far.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    ordered = far.sort(-1).values
    neighbours = (there.sum(1) - liars - 2).clamp(min=1)
    near = torch.arange(apart.shape[-1])[None, None] < neighbours[:, None, None]
    scores = torch.where(near, ordered, 0.0).sum(-1)
    scores = torch.where(there, scores, torch.inf)
    rank = scores.argsort(dim=-1, stable=True).argsort(-1)
    return ((rank < number[:, None]) & there).T

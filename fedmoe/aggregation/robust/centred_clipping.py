"""Centred clipping: updates are clipped around where the last round went, not around zero."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut
from fedmoe.aggregation.robust.geometry import gram
from fedmoe.aggregation.robust.guarded import Guarded, shrunk, typical_of
from fedmoe.aggregation.robust.rule import Centre, steady
from fedmoe.aggregation.robust.terms import Choice, Terms, shares
from fedmoe.section import section

DELTA, LAYOUT = "delta", "layout"


@section
class CentredClipping(Guarded):
    r"""Start from the last round's move, and go towards every update by a bounded step.

    $$v \leftarrow v + \sum_i p_i \,(P_i - v)\, \min\Big(1, \frac{\tau}{\|P_i - v\|}\Big)$$

    a few times, expert by expert, where v starts as `momentum` times the move of the round before
    (zero in the first, and of an expert that did not move). P is the change of the product BA
    (`geometry`), after clipping; p are the reporters' capped shares; tau is `radius` times the
    median distance from v. v is known by its weights on the updates and on the last move, so that
    distances follow from inner products; the same weights are then given to the factors. Where all
    are within the radius, the next state is the clipped mean. An expert with fewer than five
    reporters is averaged, clipped and capped.

    The server keeps one delta between rounds.

    Source: Karimireddy et al. 2020 (arXiv:2012.10333, Alg. 2 and eq. 15). Where we differ: per
    expert, of the product; their tau is a constant; and their clients send momentum over their own
    steps, which the last move stands in for.
    """

    name: Literal["centred_clipping"] = "centred_clipping"
    withstands: ClassVar[str] = "product"
    radius: Annotated[float, Field(gt=0)] = 1.0
    """The tau, as a multiple of the reporters' median distance from the centre."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How much of the last round's move is the first centre."""
    steps: Annotated[int, Field(ge=1)] = 3

    @property
    def needed(self) -> int:
        return 5

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        last = self.last(terms, centre)
        inner = gram(terms.state, [*shrunk(terms, guarded), last])
        p = shares(guarded.weights * terms.used).T
        squares = inner.diagonal(dim1=1, dim2=2)
        at = torch.zeros_like(squares)
        at[:, -1] = 1
        for _ in range(self.steps):
            cross = (inner @ at[..., None])[..., 0]
            within = (at * cross).sum(-1, keepdim=True)
            apart = (squares - 2 * cross + within).clamp(min=0).sqrt()[:, :-1]
            tau = self.radius * typical_of(apart, terms.used.T)
            pull = p * (tau / apart.clamp(min=1e-150)).clamp(max=1)
            at = at * (1 - pull.sum(-1, keepdim=True))
            at[:, :-1] += pull
        enough = terms.used.sum(0) >= self.needed
        weight = (guarded.weights * terms.used).sum(0)
        moved = torch.where(terms.used, steady(at[:, :-1].T) * weight, guarded.weights)
        anchor = torch.where(enough, steady(at[:, -1]) * weight, 0.0)
        weights = torch.where(enough, moved, guarded.weights)
        return Choice(weights, guarded.factors, (last, anchor.clamp(min=0)))

    def last(self, terms: Terms, centre: Centre) -> Adapter:
        """Return the first centre; zero where the round before sent other tensors."""
        layout = terms.updates[0].delta.layout
        known = centre.get(LAYOUT)
        if known is None or not known.equal(_digest(layout)):
            return Adapter(layout, torch.zeros(layout.size))
        return Adapter(layout, centre[DELTA] * self.momentum)

    def remembered(self, terms: Terms, made: Adapter) -> Centre:
        layout = terms.updates[0].delta.layout
        ends = (made, terms.state)
        new, old = (a if a.layout == layout else cut(a, layout) for a in ends)
        return {DELTA: new.flat - old.flat, LAYOUT: _digest(layout)}


def _digest(layout: Layout) -> Tensor:
    return torch.tensor([*layout.digest.encode()])

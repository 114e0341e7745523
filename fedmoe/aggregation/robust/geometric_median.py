"""Geometric median: the point whose weighted distances from all updates are the least."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from fedmoe.aggregation.robust.geometry import gram
from fedmoe.aggregation.robust.guarded import Guarded, shrunk
from fedmoe.aggregation.robust.rule import Centre, steady
from fedmoe.aggregation.robust.terms import Choice, Terms, redistributed
from fedmoe.section import section


@section
class GeometricMedian(Guarded):
    r"""Weigh updates by how near they are to where most of them lie, expert by expert.

    $$\beta_i \leftarrow \frac{\gamma_i}{\max(\nu, \|P_i - z\|)}, \qquad
      z \leftarrow \sum_i \beta_i P_i \,/\, \sum_i \beta_i$$

    a few times, from z = the mean: smoothed Weiszfeld. P is the change of the product BA
    (`geometry`), after clipping, so that z is known by its weights alone and distances follow from
    the inner products. The reporters' weight is then shared out by beta. The weights gamma are the
    strategy's, capped; those of fewer than half of the weight cannot move it far. An expert with
    fewer than five reporters is averaged, clipped and capped.

    Source: RFA, Pillutla et al. 2019 (arXiv:1912.13445, Alg. 2), on whole updates. Where we differ:
    per expert, of the product; nu is a share of the median norm, not an absolute number; and the
    mean that it weighs is the factors', as the strategy's.
    """

    name: Literal["geometric_median"] = "geometric_median"
    withstands: ClassVar[str] = "product"
    steps: Annotated[int, Field(ge=1)] = 8
    """Steps of Weiszfeld; the paper finds three enough."""
    smoothing: Annotated[float, Field(gt=0)] = 1e-3
    """The nu, as a share of the root mean square of the clients' norms."""

    @property
    def needed(self) -> int:
        return 5

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        inner = gram(terms.state, shrunk(terms, guarded))
        gamma = (guarded.weights * terms.used).T
        squares = inner.diagonal(dim1=1, dim2=2)
        nu = self.smoothing * (squares * terms.used.T).mean(-1, keepdim=True).sqrt()
        beta = gamma
        for _ in range(self.steps):
            share = beta / beta.sum(-1, keepdim=True).clamp(min=1e-300)
            cross = (inner @ share[..., None])[..., 0]
            within = (share * cross).sum(-1, keepdim=True)
            apart = (squares - 2 * cross + within).clamp(min=0).sqrt()
            beta = gamma / torch.maximum(apart, nu).clamp(min=1e-150)
        # Relative to the largest: distances of almost zero give weights of almost infinity.
        beta = steady(beta / beta.amax(-1, keepdim=True).clamp(min=1e-300))
        return redistributed(terms, guarded, beta.T, terms.used.sum(0) >= self.needed)

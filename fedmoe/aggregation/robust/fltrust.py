"""FLTrust: updates count by how much they point where the server's own data point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

from fedmoe.aggregation.robust.geometry import MEASURES, gram, moves_of
from fedmoe.aggregation.robust.guarded import Guarded, clipped, shrunk
from fedmoe.aggregation.robust.rule import Centre, steady
from fedmoe.aggregation.robust.terms import Choice, Terms, redistributed
from fedmoe.errors import Fault
from fedmoe.section import section


@section
class FLTrust(Guarded):
    r"""Weigh updates by their cosine with an update of the server's own, expert by expert.

    $$\gamma_i \leftarrow \gamma_i \max\big(0, \cos(P_i, P_0)\big), \qquad
      \|P_i\| \leftarrow \min(\|P_i\|, \|P_0\|)$$

    P is the change of the product BA (`geometry`); P_0 that of a local round on the server's root
    rows, trained like a client's of the tier with the most experts. An expert that nobody agrees
    with the root on does not move; one that the root did not use is averaged, clipped and capped.

    Source: Cao et al. 2020 (arXiv:2012.13995, eq. 1 to 3), on whole updates, which it scales up to
    the root's norm, too. Ours never makes an update larger, keeps the strategy's capped weights
    (theirs are equal), and clips in steps of the factors.
    """

    name: Literal["fltrust"] = "fltrust"
    withstands: ClassVar[str] = "root"
    root: str = ""
    """File of the server's own rows, with the usual columns (prompt, response); a hundred are
    enough."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        yield from super().faults(experiment, model)
        if not self.root:
            yield Fault("robust.root", "missing; name a file with rows of the server's own")
        if experiment.aggregation.personal:
            said = "trains a client's round at the server, which has no part that clients keep"
            named = f"aggregation.name {experiment.aggregation.name!r}"
            yield Fault("robust.name", f"{self.name!r} {said}, as {named} needs; use 'clip'")

    @property
    def needed(self) -> int:
        return 1

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        assert terms.root is not None, "a rule with root rows is given their update"
        known = moves_of(terms.state, terms.root.delta)
        limits = torch.full((MEASURES, terms.used.shape[1]), torch.inf).double()
        limits[0] = known.norms()[0]
        known_here = limits[0] > 0
        moves = [moves_of(terms.state, delta) for delta in shrunk(terms, guarded)]
        smaller = guarded.factors * torch.stack([clipped(m, limits) for m in moves])
        factors = torch.where(known_here, smaller, guarded.factors)
        choice = Choice(guarded.weights, factors)
        inner = gram(terms.state, [*shrunk(terms, choice), terms.root.delta])
        # Rounding may leave a square below 0 where two changes of factors undo each other.
        norms = inner.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        both = norms[:, :-1] * norms[:, -1:]
        cosines = torch.where(both > 0, inner[:, :-1, -1] / both.clamp(min=1e-150), 0.0)
        trust = steady(cosines.clamp(0, 1)).T * guarded.weights
        return redistributed(terms, choice, trust, known_here)

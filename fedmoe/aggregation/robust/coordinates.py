"""The hooks of rules that take each coordinate by itself: the median and the trimmed mean."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.robust.geometry import owners_of
from fedmoe.aggregation.robust.guarded import Guarded
from fedmoe.aggregation.robust.rule import Centre
from fedmoe.aggregation.robust.terms import Choice, Terms
from fedmoe.section import section

TOGETHER = 2**20
"""Values of one client that are sorted at once."""


@section
class Coordinates(Guarded):
    """Base of rules on each coordinate of dA and dB: every reporter has one vote, unclipped.

    Where an expert has too few reporters, its mean is clipped and capped, as by `clip`.
    """

    def middle(self, values: Float[Tensor, "clients ..."]) -> Float[Tensor, ...]:
        """Return what the values of an expert's reporters become."""
        raise NotImplementedError

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        """Return one vote each, unclipped, where there are reporters enough."""
        enough = (terms.used.sum(0) >= self.needed)[None]
        votes = torch.where(enough, terms.used.double(), guarded.weights)
        return Choice(votes, torch.where(enough, 1.0, guarded.factors))

    def next_state(self, terms: Terms, choice: Choice, centre: Centre) -> Adapter:
        number, layout = terms.used.sum(0), terms.updates[0].delta.layout
        mean = (number < self.needed) & (number > 0)
        made = terms.state.copy()
        if mean.any():
            made = terms.next_state(Choice(choice.weights * mean, choice.factors))
        views, sent = made.views(), [update.delta.views() for update in terms.updates]
        for entry in layout.entries:
            there = terms.used[:, owners_of(layout, entry.layer)].T
            values = [view[entry.name] for view in sent]
            for expert, voters in enumerate(there):
                if int(voters.sum()) < self.needed:
                    continue
                at = expert if entry.layer is not None else ...
                voting = torch.stack(
                    [v[at] for v, votes in zip(values, voters, strict=True) if votes]
                )
                views[entry.name][at] += self.middle(voting)
        return made

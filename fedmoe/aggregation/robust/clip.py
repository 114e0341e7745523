"""Clip: no update is much larger than the others', or against them; no larger size counts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from fedmoe.aggregation.robust.geometry import cosines
from fedmoe.aggregation.robust.guarded import FEW, Guarded, shrunk
from fedmoe.aggregation.robust.rule import Centre, steady
from fedmoe.aggregation.robust.terms import Choice, Terms
from fedmoe.section import section

MOST_VOTERS = 64
"""Clients of a round up to which they vote: each pair of them costs an inner product."""


@section
class Clip(Guarded):
    r"""Clip every expert's update to twice the round's median norm, and cap what sizes count.

    $$\Delta_{ce} \leftarrow t_{ce} \Delta_{ce}, \quad
      t_{ce} = \max \{ t \le 1 : \|P_{ce}(t)\| \le \tau\, \mathrm{med}_i \|P_{ie}\| \}, \qquad
      n_c \leftarrow \min(n_c,\ \nu\, \mathrm{med}_i n_i)$$

    with the norm of the product's change P (`geometry`), and the same for dA and for dB alone: a
    large dA behind a B of zero is no change of the product yet, but one of the mean. The median is
    over those that moved the expert, the lower one of an even number. An expert of fewer than
    three takes the median of its layer: over all clients, of each one's median over its experts.
    The size n_c is the weight for shared parts; a client's other weights are lowered like it. With
    a `most_share` nobody then has more than that share of any expert's weight. Last, whole updates
    vote on each other by their cosines: who is turned against more than half of the others takes
    no part, if more than half of all agree with half of theirs (`most_against`).

    Where nobody is over a limit, the next state is the strategy's, to the bit. In six honest rounds
    of the quickstart twice the median norm clips 2 of 1,560 updates of experts, where the median
    itself clips 68 %; a `most_share` of 0.3 lowers 38 % of FLAME's weights there. A client's middle
    cosine with the others is above 0 in all of them, and in 24 rounds of clients more unlike than
    these (0.004 was the least); that of a turned update was -0.04 or less. What the rule does not
    stop: a backdoor, as it is training data like any other, and a lie that agrees a little. Where
    clients alone know their rows, a `most_size` and a `most_norm` of 1 make both smaller. The
    table is `simulations/attacks.md`.

    It keeps a round's updates until the last has arrived, beyond a gigabyte of them in files
    (`TMPDIR`): ten updates of 592 MB take 4.9 GB there. While clients vote, there is a copy of
    every update that is clipped.

    Source: norm clipping against backdoors is Sun et al. 2019 (arXiv:1911.07963, section 3.3),
    with a fixed bound and on the whole update; ours is relative, per expert and of the product. The
    vote is our own; FoolsGold and FLTrust (arXiv:2012.13995) use cosines otherwise.
    """

    name: Literal["clip"] = "clip"
    withstands: ClassVar[str] = "weight"
    most_against: Annotated[float, Field(gt=0, le=1)] | None = 0.01
    """Cosine up to which two clients' updates are neither with nor against each other. A client
    whose update is against more than half of the others' is left out of the round; nobody is when
    null, where clients have no direction in common, or in a round of more than 64, in which each
    weighs little. Null where some rightly undo what most learn."""

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        if self.most_against is None or not FEW <= len(terms.updates) <= MOST_VOTERS:
            return guarded
        found = steady(cosines(terms.state, shrunk(terms, guarded)))
        turned = opposed(found, self.most_against)
        return Choice(guarded.weights.masked_fill(turned[:, None], 0.0), guarded.factors)


def opposed(found: Float[Tensor, "clients clients"], least: float) -> Bool[Tensor, " clients"]:
    """Return who is against more than half of the others, by cosines, where most agree.

    Each client's middle cosine counts, of an even number of others the upper one; at least half of
    all must have one above `least`.
    """
    places = torch.eye(len(found), dtype=torch.bool)
    half = (len(found) - 1) // 2
    middle = found.masked_fill(places, torch.inf).sort(1).values[:, half]
    agreed = middle.sort().values[half]
    return (middle < -least) & (agreed > least)

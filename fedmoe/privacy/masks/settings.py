"""The `secure_aggregation` section."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.section import section

NEGLIGIBLE = 1e-3
"""Probability that a run has a round of fewer clients than are expected at least."""


@section
class SecureAggregation:
    """Masked sums: the server learns what all clients' vectors add up to, and no single one.

    Example:
        >>> SecureAggregation().threshold_of(9)
        6
    """

    neighbours: Annotated[int, Field(ge=2)] | None = None
    """Clients with which each shares masks and secrets, chosen anew in each round; all when
    omitted. Fewer cost less, and protect against fewer that are in league with the server."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 2 / 3
    """Share of a client's neighbours, rounded up, that must stay to the end: fewer together learn
    nothing, and if more leave, the round is lost."""

    def threshold_of(self, neighbours: int) -> int:
        """Return how many of so many neighbours must stay; at least two."""
        return max(2, math.ceil(round(self.threshold * neighbours, 9)))

    def least(self, clients: int | None) -> int:
        """Return the fewest neighbours with which a client goes on.

        Args:
            clients: that take part in a round by the experiment; None where that is open.
        """
        wanted = [n for n in (self.neighbours, clients and clients - 1) if n is not None]
        return self.threshold_of(min(wanted)) if wanted else 2

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what needs to see single updates."""
        e, strategy = experiment, experiment.aggregation
        if not strategy.maskable or strategy.asynchronous:
            said = (
                f"aggregation.name {strategy.name!r} needs single updates, which masks hide; use "
            )
            yield Fault("secure_aggregation", said + "one that is a mean")
        if e.rescaling.learned:
            said = f"{e.rescaling.name!r} sends factors that no mask hides; use 'none' or 'static'"
            yield Fault("rescaling.name", said)
        if e.privacy and self.neighbours:
            said = "hides from a client how many add noise with it; leave it out with `privacy`"
            yield Fault("secure_aggregation.neighbours", said)
        if e.privacy and e.privacy.sampling == "secret" and e.privacy.noise_multiplier is None:
            said = (
                "give it: else clients, who add the noise under masks, would have to believe the "
            )
            yield Fault("privacy.noise_multiplier", said + "server how many they are")
        if (expected := expected_clients(e)) is None and self.neighbours is None:
            said = "missing: by it clients know how many others to insist on; or list data.clients"
            yield Fault("clients_per_round", said)
        if e.privacy and e.privacy.sampling == "secret" and expected is not None and expected < 3:
            said = "'secret' leaves some round with fewer than 3 clients, which ends the run and "
            said += "tells that they took part; use 'known', or raise clients_per_round"
            yield Fault("privacy.sampling", said)
        if e.upload.name != "none":
            said = f"{e.upload.name!r} has no sums under masks, which take 8 bytes a value; use "
            yield Fault("upload.name", said + "'none'")


def expected_clients(experiment: Any) -> int | None:
    """Return the fewest clients that a round has by the experiment; None where that is open.

    Where they are drawn in secret, with negligible probability a round of the run has fewer.
    """
    e = experiment
    known, listed = e.partition.num_clients, getattr(e.partition, "clients", ())
    if e.data.name == "federated":
        known, listed = None, e.data.clients
    known = known or len(listed) or None
    wanted = e.clients_per_round or known
    if wanted is None or known is None or wanted >= known:
        return known if known is not None else wanted
    if e.privacy is None or e.privacy.sampling == "known":
        return wanted
    return fewest(known, wanted / known, NEGLIGIBLE / max(1, e.rounds))


def fewest(number: int, probability: float, chance: float) -> int:
    """Return the fewest clients of a round: that there are fewer has at most this chance.

    Args:
        number: of clients, each of which takes part or not.
        probability: with which it does.
        chance: of a round with fewer.

    >>> fewest(20, 0.25, 0.1), fewest(200, 0.2, 5e-5)
    (3, 20)
    """
    total, on, off = 0.0, math.log(probability), math.log1p(-probability)
    for k in range(number):
        ways = math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)
        total += math.exp(ways + k * on + (number - k) * off)
        if total > chance:
            return k
    return number

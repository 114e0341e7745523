"""The parts of the vectors of a round of masked sums, the same at the server and its clients.

A client computes it from the experiment, which comes with every request: the node's
own `least_noise` alone is what no server can lower. Of a round it is told sizes (`Bounds`), which
change what its sum can express, and not its noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from fedmoe.errors import WireError
from fedmoe.privacy.accountant import calibrated
from fedmoe.privacy.masks.settings import expected_clients
from fedmoe.privacy.masks.wire import Bounds
from fedmoe.privacy.private_mean import Mechanism, PrivateMean, even_weights
from fedmoe.privacy.vector import Vector, ranges_text

if TYPE_CHECKING:
    from fedmoe.aggregation.mean import Mean
    from fedmoe.config.schema import Experiment
    from fedmoe.messages.records import Task
    from fedmoe.privacy.masks.settings import SecureAggregation
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.setup import Setup

MOST_TOKENS = 2**40
"""Tokens of one client's round where its own local step gives no other bound."""


def settings_of(e: Experiment) -> SecureAggregation:
    """Return the section `secure_aggregation` of an experiment that has one."""
    assert e.secure_aggregation is not None
    return e.secure_aggregation


def mean_of(e: Experiment) -> Mean:
    """Return the strategy of an experiment that hides updates: no other kind passes checks."""
    return cast("Mean", e.aggregation)


def mechanism_of(setup: Setup, top_ks: Mapping[int, int]) -> Mechanism:
    """Return a private run's mechanism.

    Args:
        top_ks: how many of its clients have each k.

    Raises:
        FedMoEError: `dp-accounting` is not installed, or finds no noise for the budget.
    """
    e, number = setup.experiment, sum(top_ks.values())
    p = e.privacy
    assert p is not None
    part = min(1.0, min(e.clients_per_round or number, number) / max(1, number))
    probability = part if p.sampling == "secret" else 1.0
    noise = p.noise_multiplier or calibrated(p.epsilon, p.delta, probability, e.rounds)
    ks = top_ks or [*setup.top_ks.values()]
    even = even_weights(mean_of(e), p, ks, setup.model.layout)
    return Mechanism(p, noise, probability, part * number, even)


def bounds_of(
    server: ServerSide, tasks: Sequence[Task], number: int, private: PrivateMean | None
) -> tuple[Bounds, Vector]:
    """Return what clients are told of a round's vectors, and the vectors' parts.

    Args:
        number: of clients that are there.
        private: the run's private mean, which clips and noises.
    """
    e = server.setup.experiment
    limits = [server.limits(t, e.admission.most_examples) for t in tasks]
    most_tokens = int(min(max(limit.tokens for limit in limits), MOST_TOKENS))
    top_ks = Counter(member.top_k for member in server.known) if private else {}
    bounds = Bounds(
        number,
        float(max(limit.delta for limit in limits)),
        most_tokens,
        private.clip if private else 1.0,
        dict(top_ks),
    )
    vector = _vector(server.setup, tasks[0], bounds, private)
    return replace(bounds, ranges=ranges_text(vector.parts)), vector


def vector_at_client(
    setup: Setup, task: Task, bounds: Bounds, neighbours: int, threshold: int
) -> Vector:
    """Return what a client makes of its round.

    Args:
        neighbours: clients that share masks with it.
        threshold: how many of them must stay.

    Raises:
        WireError: it is told of more clients than it sees or the experiment allows, or comes to
            other ranges.
    """
    e, private = setup.experiment, None
    settings = settings_of(e)
    # Of so many at most the threshold is large enough.
    most = math.floor(round(threshold / settings.threshold, 9)) + 1
    if settings.neighbours is not None:
        most = max(neighbours + 1, expected_clients(e) or bounds.num_clients)
    if not neighbours < bounds.num_clients <= most:
        raise WireError(
            f"{bounds.num_clients} clients take part, it is said; with {neighbours} neighbours "
            f"expected {neighbours + 1} to {most}: each would add the less noise, and round more"
        )
    if e.privacy is not None:
        private = PrivateMean(mean_of(e), mechanism_of(setup, bounds.top_ks), bounds.clip)
    vector = _vector(setup, task, bounds, private)
    if (here := ranges_text(vector.parts)) != bounds.ranges:
        raise WireError(
            f"vectors here have the parts {here!s:.400}; the server's {bounds.ranges!s:.400}: both "
            "need the same experiment"
        )
    return vector


def _vector(setup: Setup, task: Task, bounds: Bounds, private: PrivateMean | None) -> Vector:
    e = setup.experiment
    sizes = {"uniform": 1, "examples": e.admission.most_examples, "tokens": bounds.most_tokens}
    # Of those who mask, so many neighbours of each stay and it itself, else nothing is revealed.
    survivors = settings_of(e).threshold_of(bounds.num_clients - 1)
    return Vector(
        mean_of(e),
        setup.layouts(task.tier, task.round).update,
        bounds.num_clients,
        bounds.largest_change,
        float(sizes[mean_of(e).weighting]),
        bounds.most_tokens,
        e.admission.most_examples,
        private,
        1 / survivors,
    )

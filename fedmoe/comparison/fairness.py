"""Fairness: how evenly a strategy serves its clients, each on its own mix of labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe.comparison.result import Result

ONE_IN = 10


@dataclass(frozen=True)
class Fairness:
    """Statistics of the clients' scores in one run."""

    mean: float
    worst: float
    worst_tenth: float
    jain: float


def fairness(result: Result) -> Fairness | None:
    """Return the statistics over the clients whose labels were tested; None without any."""
    if not (scores := [*result.clients.values()]):
        return None
    return Fairness(statistics.mean(scores), min(scores), worst_tenth(scores), jain_index(scores))


def worst_tenth(scores: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the scores, rounded up: of 11 scores the lowest 2."""
    # Not 0.1 * n rounded up: in binary that is over 3 for n = 30.
    lowest = sorted(scores)[: -(-len(scores) // ONE_IN)]
    return sum(lowest) / len(lowest)


def jain_index(scores: Sequence[float]) -> float:
    r"""Return how equal the scores are: 1 if all are the same, 1/n if one client has everything.

    $$J = \left(\sum_i x_i\right)^2 / \left(n \sum_i x_i^2\right)$$

    All zeros count as equal: 1.

    >>> jain_index([1, 0, 0, 0])
    0.25

    Source: Jain, Chiu and Hawe 1984 (DEC research report TR-301, equation 1).
    """
    squares = sum(x * x for x in scores)
    return sum(scores) ** 2 / (len(scores) * squares) if squares else 1.0

"""The privacy that a run has spent, by the library `dp-accounting`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from fedmoe.errors import FedMoEError
from fedmoe.system.extras import require

STEP = 1e-3
"""Steps in which losses are rounded up: ten times the library's, and the time is a tenth; epsilon
is the same to the fourth digit (51.6919 of 2 rounds at noise .2, 7.0466 of 100 at noise 1)."""


class Spent(NamedTuple):
    """The numbers behind a round's cost; a run that is resumed with other noise has two kinds."""

    noise_multiplier: float
    probability: float
    """With which each client took part; 1 where that is no secret."""


@dataclass(frozen=True)
class Accountant:
    """Turns rounds into epsilon, for neighbours that differ in the presence of one client.

    A round is a Gaussian mechanism on a vector of norm 1. If its clients were drawn in secret, each
    with the same probability, it is Poisson-sampled; else the probability is 1. Composition is by
    privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049), pessimistic at `delta`.

    Example:
        >>> accountant = Accountant(delta=1e-5)
        >>> 7 < accountant.epsilon([Spent(noise_multiplier=1.0, probability=0.1)] * 100) < 8
        True
    """

    delta: float

    def epsilon(self, rounds: Sequence[Spent]) -> float:
        """Return what rounds cost together.

        Raises:
            FedMoEError: `dp-accounting` is not installed.
        """
        return _epsilon(self.delta, tuple(sorted(Counter(rounds).items()))) if rounds else 0.0


def calibrated(epsilon: float, delta: float, probability: float, rounds: int) -> float:
    """Return the smallest noise multiplier with which the rounds spend no more than epsilon.

    Raises:
        FedMoEError: `dp-accounting` is not installed, or finds none.
    """
    dp, pld = _library()

    def event(noise: float) -> Any:
        return dp.SelfComposedDpEvent(_round(dp, noise, probability), max(1, rounds))

    try:
        return float(dp.calibrate_dp_mechanism(partial(_fresh, pld), event, epsilon, delta))
    except Exception as error:  # several of its own
        raise FedMoEError(
            f"privacy: no noise was found with which {rounds} rounds spend epsilon {epsilon:g} at "
            f"delta {delta:g} ({error}); raise privacy.epsilon, or give privacy.noise_multiplier"
        ) from error


@cache
def _epsilon(delta: float, rounds: tuple[tuple[Spent, int], ...]) -> float:
    """Return the cost of rounds, each so many times."""
    dp, pld = _library()
    accountant = _fresh(pld)
    for spent, number in rounds:
        accountant.compose(_round(dp, *spent), number)
    return float(accountant.get_epsilon(delta))


def _fresh(pld: Any) -> Any:
    return pld.PLDAccountant(value_discretization_interval=STEP)


def _round(dp: Any, noise: float, probability: float) -> Any:
    event = dp.GaussianDpEvent(noise)
    return event if probability >= 1 else dp.PoissonSampledDpEvent(probability, event)


def _library() -> tuple[Any, Any]:
    require("privacy", "privacy", "dp_accounting")
    import dp_accounting
    from dp_accounting import pld

    return dp_accounting, pld

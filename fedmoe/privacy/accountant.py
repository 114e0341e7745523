"""The privacy that a run has spent, by the library `dp-accounting`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe.system.extras import require


@dataclass(frozen=True)
class Accountant:
    """Turns rounds into epsilon, for neighbours that differ in the presence of one client.

    A round is a Gaussian mechanism on a vector of norm 1. If its clients were drawn in secret, each
    with the same probability, it is Poisson-sampled; else the probability is 1. Composition is by
    privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049), pessimistic at `delta`.

    Example:
        >>> accountant = Accountant(noise_multiplier=1.0, delta=1e-5)
        >>> 7 < accountant.epsilon([0.1] * 100) < 8
        True
    """

    noise_multiplier: float
    delta: float

    def epsilon(self, probabilities: Sequence[float]) -> float:
        """Return what rounds cost in which each client took part with these probabilities.

        Raises:
            FedMoEError: `dp-accounting` is not installed.
        """
        if not probabilities:
            return 0.0
        dp, pld = _library()
        accountant = pld.PLDAccountant()
        for probability, number in Counter(probabilities).items():
            accountant.compose(_round(dp, self.noise_multiplier, probability), number)
        return float(accountant.get_epsilon(self.delta))


def calibrated(epsilon: float, delta: float, probability: float, rounds: int) -> float:
    """Return the smallest noise multiplier with which the rounds spend no more than epsilon.

    Raises:
        FedMoEError: `dp-accounting` is not installed, or finds none.
    """
    dp, pld = _library()

    def event(noise: float) -> Any:
        return dp.SelfComposedDpEvent(_round(dp, noise, probability), max(1, rounds))

    try:
        return float(dp.calibrate_dp_mechanism(pld.PLDAccountant, event, epsilon, delta))
    except Exception as error:  # several of its own
        raise FedMoEError(
            f"privacy: no noise was found with which {rounds} rounds spend epsilon {epsilon:g} at "
            f"delta {delta:g} ({error}); raise privacy.epsilon, or give privacy.noise_multiplier"
        ) from error


def _round(dp: Any, noise: float, probability: float) -> Any:
    event = dp.GaussianDpEvent(noise)
    return event if probability >= 1 else dp.PoissonSampledDpEvent(probability, event)


def _library() -> tuple[Any, Any]:
    require("privacy", "privacy", "dp_accounting")
    import dp_accounting
    from dp_accounting import pld

    return dp_accounting, pld

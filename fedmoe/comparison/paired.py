"""Simultaneous intervals of paired differences: of a variant from the reference, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
EQUAL = 1e-12
"""Differences of equal numbers may be as large, by rounding."""
STEPS = 1000
"""Quantiles of the standard deviation over which power is averaged."""


@dataclass(frozen=True)
class Difference:
    """The mean of variant minus reference over the same seeds, or examples, with its interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    """None with fewer than two pairs, or where one of them is not finite."""
    least: float | None = None
    """The smallest true difference that such pairs show with a probability of `POWER`."""

    @property
    def sure(self) -> bool:
        """Return whether the interval leaves 0 out; pairs that are all alike show no spread."""
        if self.low is None or self.high is None or self.high - self.low < EQUAL:
            return False
        return self.low > 0 or self.high < 0


def difference(ours: Sequence[float], reference: Sequence[float], tests: int = 1) -> Difference:
    r"""Return the mean of `ours[i] - reference[i]`, a pair per seed, and its 95 % t-interval.

    $$\bar d \pm t_{1 - 0.05 / 2m,\; n - 1}\; s / \sqrt n$$

    The `m = tests` intervals of a table hold together with a probability of at least 95 %, however
    their cells depend on each other (Bonferroni's inequality), as far as differences are normal.

    >>> difference([0.75, 0.5], [0.25, 0.0]).mean
    0.5

    Source: Dunn 1961 (Journal of the American Statistical Association 56(293)).
    """
    pairs = np.subtract(ours, reference, dtype=np.float64)
    mean, number = float(pairs.mean()), len(pairs)
    if number < 2 or not np.isfinite(pairs).all():
        return Difference(mean)
    error = float(pairs.std(ddof=1)) / math.sqrt(number)
    reach = _critical(number, tests) * error
    return Difference(mean, mean - reach, mean + reach, standard_errors(number, tests) * error)


def unpaired(ours: tuple[float, int], reference: tuple[float, int], tests: int = 1) -> Difference:
    """Return the difference of two scores, each with its number of examples, and its 95 % interval.

    The examples are other ones. Single scores between 0 and 1 make the interval wider than needed.
    `tests` as in `difference`.

    >>> round(unpaired((0.5, 100), (0.5, 100)).high, 4)
    0.1386
    """
    (a, m), (b, n) = ours, reference
    error = math.sqrt(a * (1 - a) / m + b * (1 - b) / n)
    critical = float(stats.norm.ppf(1 - (1 - CONFIDENCE) / (2 * tests)))
    seen = (critical + float(stats.norm.ppf(POWER))) * error
    return Difference(a - b, a - b - critical * error, a - b + critical * error, seen)


@cache
def _critical(number: int, tests: int) -> float:
    """Return t that a difference of `number` pairs must pass, as one of so many tests."""
    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * tests), number - 1))


@cache
def standard_errors(number: int, tests: int) -> float:
    r"""Return how many standard errors a true difference must have to be seen with 80 % power.

    $$\delta: \quad E_s\, \Phi(\delta - t\, s) = 0.8, \qquad s^2 \sim \chi^2_{n-1} / (n - 1)$$

    which is the noncentral t distribution's power, by an average over quantiles of `s` that holds
    for two pairs and hundreds of tests, too.
    """
    shares = (np.arange(STEPS) + 0.5) / STEPS
    passed = _critical(number, tests) * np.sqrt(stats.chi2.ppf(shares, number - 1) / (number - 1))

    def lacks(shift: float) -> float:
        return float(stats.norm.cdf(shift - passed).mean()) - POWER

    return float(optimize.brentq(lacks, 0, passed[-1] + 9))  # pyright: ignore

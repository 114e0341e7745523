"""Intervals and tests on paired scores: the difference of a variant from the reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of variant minus reference over the same seeds, or examples, with its interval."""

    mean: float
    low: float | None
    high: float | None
    """None with fewer than two seeds."""


def difference(ours: Sequence[float], reference: Sequence[float], tests: int = 1) -> Difference:
    """Return the mean of `ours[i] - reference[i]`, a pair per seed, and its 95 % t-interval.

    With `tests` above 1, the interval is wide enough to hold for that many differences together,
    by Bonferroni's inequality.

    >>> difference([0.75, 0.5], [0.25, 0.0]).mean
    0.5
    """
    pairs = [a - b for a, b in zip(ours, reference, strict=True)]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return Difference(mean, None, None)
    reach = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * tests), len(pairs) - 1) * stats.sem(pairs)
    return Difference(mean, mean - float(reach), mean + float(reach))


def unpaired(ours: tuple[float, int], reference: tuple[float, int]) -> Difference:
    """Return the difference of two scores, each with its number of examples, and its 95 % interval.

    The examples are other ones. Single scores between 0 and 1 make the interval wider than needed.

    >>> round(unpaired((0.5, 100), (0.5, 100)).high, 4)
    0.1386
    """
    (a, m), (b, n) = ours, reference
    reach = 1.96 * math.sqrt(a * (1 - a) / m + b * (1 - b) / n)
    return Difference(a - b, a - b - reach, a - b + reach)


def wilcoxon(ours: Sequence[float], reference: Sequence[float]) -> float:
    r"""Return the two-sided p of the signed-rank test of `ours[i] - reference[i]`.

    $$p = \min(1, 2 \min(P(W \le w), P(W \ge w)))$$

    w is the sum of the ranks of the positive differences; under the null hypothesis every rank
    counts with a probability of 1/2. Equal pairs are left out (if all are equal, p is 1) and ties
    share their mean rank. The p is exact: scipy's exact p allows no ties, which scores have, and
    trying all signs takes seconds.

    Source: Wilcoxon 1945 (Biometrics Bulletin 1(6)).
    """
    # Rounded, or 0.3 - 0.2 and 0.4 - 0.3, which are not equal in binary, would be no tie.
    pairs = np.round(np.subtract(ours, reference), 12)
    pairs = pairs[pairs != 0]
    ranks = np.rint(2 * stats.rankdata(abs(pairs))).astype(int)  # doubled: mean ranks are halves
    null = np.ones(1)  # the probability of each rank sum
    for rank in ranks:
        null = 0.5 * (np.pad(null, (0, rank)) + np.pad(null, (rank, 0)))
    w = ranks[pairs > 0].sum()
    return float(min(1.0, 2 * min(null[: w + 1].sum(), null[w:].sum())))


def holm(values: Sequence[float]) -> list[float]:
    r"""Return the p of several tests, raised for a false alarm among them to be no likelier than p.

    $$\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})$$

    Source: Holm 1979 (Scandinavian Journal of Statistics 6(2)).
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = highest
    return adjusted

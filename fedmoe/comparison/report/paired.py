"""Is a variant different from the reference? Intervals and tests on paired scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Variant minus reference over the same seeds, with the paired t-interval."""

    mean: float
    low: float | None
    high: float | None
    """None where there are fewer than two seeds."""


def difference(ours: Sequence[float], reference: Sequence[float], tests: int = 1) -> Difference:
    """The mean of `ours[i] - reference[i]`, one pair a seed, and its 95 % t-interval.

    With `tests` above 1 the interval is wide enough to hold for that many differences together, by
    Bonferroni's inequality.
    """
    pairs = [a - b for a, b in zip(ours, reference, strict=True)]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return Difference(mean, None, None)
    reach = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * tests), len(pairs) - 1) * stats.sem(pairs)
    return Difference(mean, mean - float(reach), mean + float(reach))


def wilcoxon(ours: Sequence[float], reference: Sequence[float]) -> float:
    r"""The two-sided p of the signed-rank test of `ours[i] - reference[i]`; 1 if all are equal.

    $$p = \min(1, 2 \min(P(W \le w), P(W \ge w)))$$

    w is the sum of the ranks of the positive differences; under the null hypothesis every rank
    counts with a probability of 1/2. Equal pairs are left out, ties share their mean rank. Exact:
    scipy's own exact p allows no ties, which scores have, and trying all signs takes it seconds.

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
    r"""The p of several tests, raised so that one false alarm among them is no likelier than p.

    $$\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})$$

    Source: Holm 1979 (Scandinavian Journal of Statistics 6(2)).
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = highest
    return adjusted

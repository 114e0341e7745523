"""The differences of every variant from the reference, with intervals that hold for all of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from fedmoe.comparison.paired import Difference, difference, unpaired
from fedmoe.comparison.result import MEAN, Result
from fedmoe.comparison.study import Case, Measure


@dataclass(frozen=True)
class Verdict:
    """The comparison of a variant with the reference, by one outcome."""

    by_tier: dict[str, Difference]
    """Differences of the tiers' mean and of each tier; see `Case.columns`."""
    num_pairs: int
    """Seeds, or test examples, that both have."""
    tests: int
    """Differences of the whole table, for all of which the intervals are wide enough."""

    @property
    def sure(self) -> list[str]:
        """Return the columns whose interval leaves 0 out."""
        return [name for name, found in self.by_tier.items() if found.sure]


def verdicts(case: Case, measure: Measure | None = None) -> dict[str, Verdict]:
    """Return the verdict on every variant but the reference, on the seeds that both have.

    A seed is one pair, in each column: its tiers share data and adapter, and would count one chance
    several times if they were pooled. `measure` is the primary outcome if none is said.
    """
    measure = measure or case.measure
    pairs = {name: case.paired(name) for name in case.variants if name != case.reference}
    pairs = {name: found for name, found in pairs.items() if found}
    tests = max(1, len(pairs) * len(case.columns))
    if case.pairs != "seeds":
        return {name: _between(case, *found[0], measure, tests) for name, found in pairs.items()}
    verdict = {}
    for name, found in pairs.items():
        values = [(case.values(a, measure), case.values(b, measure)) for a, b in found]
        by_tier = {
            tier: difference([a[tier] for a, _ in values], [b[tier] for _, b in values], tests)
            for tier in case.columns
        }
        verdict[name] = Verdict(by_tier, len(found), tests)
    return verdict


def _between(case: Case, ours: Result, theirs: Result, measure: Measure, tests: int) -> Verdict:
    """Return the differences of two runs."""
    a, b = ours.of_examples.by_tier, theirs.of_examples.by_tier
    if measure == "loss":  # of which single examples' are not kept
        x, y = case.values(ours, measure), case.values(theirs, measure)
        return Verdict({t: Difference(x[t] - y[t]) for t in case.columns}, 0, tests)
    if case.pairs == "examples" and a and b:
        means = [x | {MEAN: _mean_of_tiers(case, x)} for x in (a, b)]
        by_tier = {t: difference(means[0][t], means[1][t], tests) for t in case.columns}
        return Verdict(by_tier, len(means[0][MEAN]), tests)
    sizes = [r.num_examples | {MEAN: min(r.num_examples.values())} for r in (ours, theirs)]
    scores = ours.scores, theirs.scores
    by_tier = {
        t: unpaired((scores[0][t], sizes[0][t]), (scores[1][t], sizes[1][t]), tests)
        for t in case.columns
    }
    return Verdict(by_tier, min(sizes[0][MEAN], sizes[1][MEAN]), tests)


def _mean_of_tiers(case: Case, by_tier: dict[str, list[float]]) -> list[float]:
    """Return each test example's mean score over the tiers."""
    return [*map(statistics.mean, zip(*(by_tier[t] for t in case.tiers), strict=True))]

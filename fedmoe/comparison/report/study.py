"""A whole comparison as one value: its cases, their results, and how settings were searched."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedmoe.comparison.report.fairness import jain_index, worst_tenth
from fedmoe.comparison.report.paired import Difference, difference, holm, wilcoxon
from fedmoe.comparison.report.result import MEAN, Result, Spent

TARGET_SHARE = 0.9
"""Of the reference's last validation score: the target where none is set."""


@dataclass(frozen=True)
class Variant:
    """What a strategy is, for readers."""

    overrides: tuple[str, ...] = ()
    about: str = ""
    """The first line of its aggregation's, or its baseline's, docstring."""


@dataclass(frozen=True)
class Trial:
    """One point of the search for a variant's hyper-parameters, on a seed of its own."""

    variant: str
    settings: tuple[str, ...]
    score: float
    """Last validation score, mean of the tiers."""
    loss: float
    chosen: bool = False


@dataclass(frozen=True)
class Case:
    """One setting of all that variants share: what is compared is compared within it."""

    name: str
    reference: str
    results: tuple[Result, ...]
    overrides: tuple[str, ...] = ()
    target: float | None = None
    baselines: tuple[str, ...] = ()
    """Variants that show what is lost or gained by federating; they do not compete."""

    @property
    def tiers(self) -> list[str]:
        """The tiers, without their mean."""
        return [name for name in self.results[0].scores if name != MEAN]

    @property
    def variants(self) -> dict[str, list[Result]]:
        """Each variant's runs by seed; the variants in the order of the first runs."""
        names = dict.fromkeys(r.variant for r in self.results)
        return {
            name: sorted((r for r in self.results if r.variant == name), key=lambda r: r.seed)
            for name in names
        }

    def paired(self, variant: str) -> list[tuple[Result, Result]]:
        """The variant's and the reference's run of every seed that both have."""
        theirs = {r.seed: r for r in self.variants.get(self.reference, [])}
        return [(r, theirs[r.seed]) for r in self.variants[variant] if r.seed in theirs]

    @property
    def score_to_reach(self) -> float | None:
        """The target, or nine tenths of the reference's mean last validation score."""
        if self.target is not None:
            return self.target
        last = [r.points[-1].score for r in self.variants.get(self.reference, []) if r.points]
        return TARGET_SHARE * statistics.mean(last) if last else None


@dataclass(frozen=True)
class Study:
    """All that the report of a comparison shows; runs that are missing are still to come."""

    name: str
    reference: str
    cases: tuple[Case, ...]
    variants: dict[str, Variant]
    num_planned: int
    trials: tuple[Trial, ...] = ()
    search: str = ""
    """What was searched, in words."""

    @property
    def results(self) -> list[Result]:
        """Every finished run."""
        return [result for case in self.cases for result in case.results]


@dataclass(frozen=True)
class Verdict:
    """A variant against the reference."""

    by_tier: dict[str, Difference]
    """The mean of the tiers among them."""
    num_pairs: int
    """Seeds times tiers that both have."""
    p: float
    p_holm: float


def verdicts(case: Case) -> dict[str, Verdict]:
    """Every variant but the reference, on the seeds that both have.

    The signed-rank test takes one pair for every seed and tier. Over seeds alone it could not
    reject anything: three pairs have a p of at least 0.25. Over clients it would count the same
    few scores by label again and again. Pairs of one seed share its data and its adapters, so a p
    is rather too small than too large: read it with the interval, which takes a seed as one pair.
    """
    found: dict[str, tuple[dict[str, Difference], int, float]] = {}
    for variant in case.variants:
        pairs = case.paired(variant)
        if variant == case.reference or not pairs:
            continue
        by_tier = {
            tier: difference([a.scores[tier] for a, _ in pairs], [b.scores[tier] for _, b in pairs])
            for tier in (*case.tiers, MEAN)
        }
        both = [(a.scores[t], b.scores[t]) for a, b in pairs for t in case.tiers]
        p = wilcoxon([a for a, _ in both], [b for _, b in both])
        found[variant] = by_tier, len(both), p
    adjusted = holm([p for *_, p in found.values()])
    return {
        variant: Verdict(by_tier, number, p, raised)
        for (variant, (by_tier, number, p)), raised in zip(found.items(), adjusted, strict=True)
    }


@dataclass(frozen=True)
class Fairness:
    """How the clients of one run fared."""

    mean: float
    worst: float
    worst_tenth: float
    jain: float


def fairness(result: Result) -> Fairness | None:
    """Over the clients whose labels were tested; None without any."""
    if not (scores := [*result.clients.values()]):
        return None
    return Fairness(statistics.mean(scores), min(scores), worst_tenth(scores), jain_index(scores))


def spent_to_reach(result: Result, score: float) -> Spent | None:
    """What the run had spent when its validation score was first at least `score`."""
    return next((point.spent for point in result.points if point.score >= score), None)


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Mean ± standard deviation; of one value just that; a dash of none."""
    if not values:
        return "\u2013"
    mean = text(statistics.mean(values))
    return f"{mean} ± {text(statistics.stdev(values))}" if len(values) > 1 else mean

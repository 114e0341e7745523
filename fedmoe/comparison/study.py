"""A comparison as one value: its cases, their results, and the search for settings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmoe.comparison.paired import Difference, difference, holm, unpaired, wilcoxon
from fedmoe.comparison.result import MEAN, Result, Spent
from fedmoe.report.units import DASH

TARGET_SHARE = 0.9
"""Share of the reference's last validation score that is the target if none is set."""


@dataclass(frozen=True)
class VariantInfo:
    """A variant's settings, and a sentence about its strategy."""

    overrides: tuple[str, ...] = ()
    about: str = ""
    """The first line of its aggregation's, or its baseline's, docstring."""


@dataclass(frozen=True)
class Trial:
    """One point of the search for a variant's hyper-parameters, on a separate seed."""

    variant: str
    settings: tuple[str, ...]
    score: float
    """Last validation score, mean of the tiers."""
    loss: float
    chosen: bool = False


@dataclass(frozen=True)
class Case:
    """One setting of everything that variants share; variants are compared within a case."""

    name: str
    reference: str
    results: tuple[Result, ...]
    overrides: tuple[str, ...] = ()
    target: float | None = None
    baselines: tuple[str, ...] = ()
    """Variants that show what is lost or gained by federating; they do not compete."""
    pairs: Literal["seeds", "examples", "none"] = "seeds"
    """What an interval is over: seeds; or, of two runs, the test examples that both have, or none.
    """

    @property
    def tiers(self) -> list[str]:
        """The names of the tiers, without their mean."""
        return [name for name in self.results[0].scores if name != MEAN]

    @property
    def measure(self) -> Literal["score", "loss"]:
        """The number that is compared: the loss where all scores are the same."""
        found = {score for r in self.results for score in r.scores.values()}
        return "score" if len(found) > 1 else "loss"

    @property
    def unscored(self) -> bool:
        """Return whether the loss is all that was measured."""
        return all(r.metric == "loss" for r in self.results)

    @property
    def over_seeds(self) -> str:
        """Words for what numbers are means over; empty for single runs."""
        return ", mean over seeds" if self.pairs == "seeds" else ""

    def values(self, result: Result) -> dict[str, float]:
        """Return a run's numbers that are compared, by tier, and their mean."""
        return result.scores if self.measure == "score" else result.losses

    @property
    def variants(self) -> dict[str, list[Result]]:
        """Each variant's runs by seed; variants in the order of their first runs."""
        names = dict.fromkeys(r.variant for r in self.results)
        return {
            name: sorted((r for r in self.results if r.variant == name), key=lambda r: r.seed)
            for name in names
        }

    @property
    def base_losses(self) -> dict[int, float]:
        """The base's mean test loss over seeds, by experts per token, the most experts first.

        The reference tells it, and other variants where they have a number of experts that it has
        not: a variant may scale the experts' output from the start.
        """
        found: dict[int, list[float]] = {}
        for name in dict.fromkeys((self.reference, *self.variants)):
            runs = [r.base_losses for r in self.variants.get(name, [])]
            for top_k in {k for losses in runs for k in losses} - found.keys():
                found[top_k] = [losses[top_k] for losses in runs if top_k in losses]
        return {k: statistics.mean(found[k]) for k in sorted(found, reverse=True)}

    def paired(self, variant: str) -> list[tuple[Result, Result]]:
        """Return the variant's and the reference's run of every seed that both have."""
        theirs = {r.seed: r for r in self.variants.get(self.reference, [])}
        if self.pairs != "seeds":  # of two runs, which may have other seeds
            return [(r, t) for r in self.variants[variant] for t in theirs.values()]
        return [(r, theirs[r.seed]) for r in self.variants[variant] if r.seed in theirs]

    @property
    def score_to_reach(self) -> float | None:
        """The target, or nine tenths of the reference's mean last validation score."""
        if self.target is not None or self.measure == "loss":
            return self.target
        last = [r.points[-1].score for r in self.variants.get(self.reference, []) if r.points]
        return TARGET_SHARE * statistics.mean(last) if last else None


@dataclass(frozen=True)
class Study:
    """Everything the report of a comparison shows; missing runs are still to come."""

    name: str
    reference: str
    cases: tuple[Case, ...]
    variants: dict[str, VariantInfo]
    num_planned: int
    trials: tuple[Trial, ...] = ()
    search: str = ""
    """A sentence on how settings were searched."""

    @property
    def results(self) -> list[Result]:
        """Every finished run."""
        return [result for case in self.cases for result in case.results]


@dataclass(frozen=True)
class Verdict:
    """The comparison of a variant with the reference, by score or loss (`Case.measure`)."""

    by_tier: dict[str, Difference]
    """Differences by tier, and that of the tiers' mean."""
    num_pairs: int
    """Number of (seed, tier) pairs that both have."""
    p: float
    p_holm: float


def verdicts(case: Case) -> dict[str, Verdict]:
    """Return the verdict on every variant but the reference, on the seeds that both have.

    The signed-rank test takes one pair for every seed and tier. Over seeds alone it could not
    reject anything: three pairs have a p of at least 0.25. Over clients it would count the same
    few scores by label again and again. Pairs of one seed share its data and its adapters, so p
    tends to be too small: read it with the interval, which takes a seed as one pair. Two runs have
    no such test: `p` is 1.
    """
    found: dict[str, tuple[dict[str, Difference], int, float]] = {}
    for variant in case.variants:
        pairs = case.paired(variant)
        if variant == case.reference or not pairs:
            continue
        if case.pairs != "seeds":
            found[variant] = _between(case, *pairs[0]), 1, 1.0
            continue
        values = [(case.values(a), case.values(b)) for a, b in pairs]
        by_tier = {
            tier: difference([a[tier] for a, _ in values], [b[tier] for _, b in values])
            for tier in (*case.tiers, MEAN)
        }
        both = [(a[t], b[t]) for a, b in values for t in case.tiers]
        p = wilcoxon([a for a, _ in both], [b for _, b in both])
        found[variant] = by_tier, len(both), p
    adjusted = holm([p for *_, p in found.values()])
    return {
        variant: Verdict(by_tier, number, p, raised)
        for (variant, (by_tier, number, p)), raised in zip(found.items(), adjusted, strict=True)
    }


def _between(case: Case, ours: Result, theirs: Result) -> dict[str, Difference]:
    """Return the difference of two runs at every tier, and of the tiers' mean."""
    tiers = case.tiers
    a, b = ours.of_examples.by_tier, theirs.of_examples.by_tier
    if case.measure == "loss":  # of which single examples' are not kept
        values = case.values(ours), case.values(theirs)
        return {t: Difference(values[0][t] - values[1][t], None, None) for t in (*tiers, MEAN)}
    if case.pairs == "examples" and a and b:
        means = [
            list(map(statistics.mean, zip(*(x[t] for t in tiers), strict=True))) for x in (a, b)
        ]
        return {t: difference(a[t], b[t]) for t in tiers} | {MEAN: difference(means[0], means[1])}
    sizes = [r.num_examples | {MEAN: min(r.num_examples.values())} for r in (ours, theirs)]
    return {
        t: unpaired((ours.scores[t], sizes[0][t]), (theirs.scores[t], sizes[1][t]))
        for t in (*tiers, MEAN)
    }


def spent_to_reach(result: Result, score: float) -> Spent | None:
    """Return the costs up to the first validation score of at least `score`, or None."""
    return next((point.spent for point in result.points if point.score >= score), None)


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Return mean ± standard deviation as text; one value alone, or a dash without any."""
    if not values:
        return DASH
    mean = text(statistics.mean(values))
    return f"{mean} ± {text(statistics.stdev(values))}" if len(values) > 1 else mean

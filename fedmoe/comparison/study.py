"""A comparison as one value: its cases, their results, and the search for settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmoe.comparison.result import MEAN, Result
from fedmoe.report.units import DASH

Measure = Literal["loss", "score"]


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
    """Validation score whose cost is reported."""
    target_loss: float | None = None
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
    def columns(self) -> list[str]:
        """The mean of the tiers and each of them; of one tier that alone."""
        return [MEAN, *self.tiers] if len(self.tiers) > 1 else self.tiers

    @property
    def measure(self) -> Measure:
        """The primary outcome: the loss per token.

        Of two runs the score, whose examples make pairs, unless it does not tell them apart.
        """
        return "score" if self.scored and self.pairs != "seeds" else "loss"

    @property
    def scored(self) -> bool:
        """Return whether there are scores, and not all of them are the same."""
        return len({x for r in self.results for x in r.scores.values()}) > 1 and not self.unscored

    @property
    def unscored(self) -> bool:
        """Return whether the loss is all that was measured."""
        return all(r.metric == "loss" for r in self.results)

    @property
    def measures(self) -> list[Measure]:
        """The outcomes that have tables, the primary one first."""
        if self.pairs != "seeds":
            return [self.measure]
        return ["loss", "score"] if self.scored else ["loss"]

    @property
    def over_seeds(self) -> str:
        """Words for what numbers are means over; empty for single runs."""
        return ", mean over seeds" if self.pairs == "seeds" else ""

    def values(self, result: Result, measure: Measure | None = None) -> dict[str, float]:
        """Return a run's numbers by tier, and their mean; as a rule of the primary outcome."""
        return result.scores if (measure or self.measure) == "score" else result.losses

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


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Return mean ± standard deviation as text; one value alone, or a dash without any."""
    if not values:
        return DASH
    mean = text(statistics.mean(values))
    told = len(values) > 1 and all(map(math.isfinite, values))
    return f"{mean} ± {text(statistics.stdev(values))}" if told else mean

"""The charts of the live page, as numbers that `templates/charts.html` draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.figures import hex_colour, shades, spread
from fedmoe.report.units import percent_text
from fedmoe.watch.state import ExpertLoad, TierState

STRONGEST = 2.0
"""log2 of the relative load at which an expert's colour is full: a quarter, or four times."""

Cell = tuple[str, float, str]
"""An expert's class in the style sheet, the strength of its colour, and its load in words."""


@dataclass(frozen=True)
class Curve:
    """A tier's scores by round, and the height at which its name stands beside the others."""

    tier: str
    colour: str
    points: list[tuple[int, float]]
    label_height: float


@dataclass(frozen=True)
class ScoreChart:
    """Validation score against rounds, a line per tier; `words` are for the blind."""

    title: str
    words: str
    num_rounds: int
    top: float
    """The score at the upper end of the axis."""
    curves: list[Curve]


@dataclass(frozen=True)
class LoadChart:
    """Expert load by layer and expert; `words` are for the blind."""

    words: str
    layers: list[list[Cell]]


def score_chart(tiers: Sequence[TierState], num_rounds: int, score_name: str) -> ScoreChart | None:
    """Return the scores of all tiers; None before the first one.

    A line starts at the base model's test score.
    """
    found = {
        tier.name: points
        for tier in tiers
        if (points := [(s.round, s.score) for s in tier.curve if s.score is not None])
    }
    if not found:
        return None
    highest = max(score for points in found.values() for _, score in points)
    top = next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= end), highest)
    colours = shades([tier.name for tier in tiers])
    heights = spread([points[-1][1] for points in found.values()], gap=0.08 * top)
    words = [f"{name} {percent_text(p[-1][1])} after round {p[-1][0]}" for name, p in found.items()]
    return ScoreChart(
        title=f"Validation {score_name} per round",
        words="; ".join(words),
        num_rounds=max(num_rounds, *(number for points in found.values() for number, _ in points)),
        top=top,
        curves=[
            Curve(name, hex_colour(colours[name]), points, height)
            for (name, points), height in zip(found.items(), heights, strict=True)
        ],
    )


def load_chart(experts: ExpertLoad) -> LoadChart:
    """Return load by layer and expert: blue is less than an equal share, orange is more."""
    words = f"of {experts.num_experts} {experts.starved} starved, {experts.captured} captured"
    return LoadChart(words, [[_cell(load) for load in layer] for layer in experts.load])


def _cell(load: float | None) -> Cell:
    if load is None:
        return "none", 1.0, "no tokens"
    kind, share = "less" if load < 1 else "more", f"{load:.2f} equal shares"
    if load < STARVED:
        kind, share = "starved", f"{share}, starved"
    if load > CAPTURED:
        share = f"{share}, captured"
    return kind, 1.0 if load == 0 else min(1.0, abs(math.log2(load)) / STRONGEST), share

"""The charts of the live page, as numbers that `templates/charts.html` draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.figures import hex_colour, shades, spread
from fedmoe.report.units import number_text, percent_text
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
    """Validation score, or loss, against rounds, a line per tier; `words` are for the blind."""

    title: str
    words: str
    num_rounds: int
    top: float
    """The score, or loss, at the upper end of the axis."""
    in_percent: bool
    curves: list[Curve]


@dataclass(frozen=True)
class LoadChart:
    """Expert load by layer and expert; `words` are for the blind."""

    words: str
    layers: list[list[Cell]]


def score_chart(tiers: Sequence[TierState], num_rounds: int, score_name: str) -> ScoreChart | None:
    """Return the scores of all tiers, or their losses where all scores are the same.

    None before the first one. A line starts at the base model's value on test data.
    """
    known = {score.score for tier in tiers for score in tier.curve}
    measure = "score" if len(known) > 1 else "loss"
    found = {
        tier.name: points
        for tier in tiers
        if (points := [(s.round, v) for s in tier.curve if (v := getattr(s, measure)) is not None])
    }
    if not found:
        return None
    highest = max(value for points in found.values() for _, value in points)
    ends = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, *(range(2, 41, 2) if measure == "loss" else ()))
    top = next((float(end) for end in ends if highest <= end), highest)
    colours = shades([tier.name for tier in tiers])
    heights = spread([points[-1][1] for points in found.values()], gap=0.08 * top)
    text = percent_text if measure == "score" else number_text
    words = [f"{name} {text(p[-1][1])} after round {p[-1][0]}" for name, p in found.items()]
    name = score_name if measure == "score" else "loss per token"
    return ScoreChart(
        title=f"Validation {name} per round; round 0: the base model on test data",
        words="; ".join(words),
        num_rounds=max(num_rounds, *(number for points in found.values() for number, _ in points)),
        top=top,
        in_percent=measure == "score",
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

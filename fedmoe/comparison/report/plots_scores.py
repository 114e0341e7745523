"""Plots of who is better: every seed's score at every tier, and the paired differences."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fedmoe.comparison.report.result import MEAN
from fedmoe.comparison.report.study import Case, verdicts
from fedmoe.report.figures import INK, MUTED, Colour, dress, new_figure, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = 0.13
"""Height of one tier of one variant."""
BLACK: Colour = (0.12, 0.14, 0.16)


def tier_scores(case: Case) -> Figure:
    """A row a tier and variant: every seed a dot, their mean a bar."""
    names, variants = [*case.tiers, MEAN], case.variants
    figure, axes = _rows("Test score (%): a dot is a seed, a bar their mean", case, [*variants])
    for place, runs in enumerate(variants.values()):
        for offset, (name, colour) in _lanes(names):
            scores = [100 * r.scores[name] for r in runs]
            mean, y = statistics.mean(scores), place + offset
            axes.plot([0, mean], [y, y], color=colour, linewidth=1.2, alpha=0.35)
            axes.plot([mean], [y], "|", color=colour, markersize=7, markeredgewidth=2)
            axes.plot(scores, [y] * len(scores), "o", color=colour, markersize=3.2, alpha=0.75)
    axes.set_xlim(left=0)
    axes.set_xlabel("percent")
    return figure


def paired_differences(case: Case) -> Figure | None:
    """A forest plot: each variant's difference to the reference with its 95 % interval."""
    against = verdicts(case)
    if not against:
        return None
    title = f"Difference to {case.reference}, in points, with 95 % intervals"
    figure, axes = _rows(title, case, [*against])
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, verdict in enumerate(against.values()):
        for offset, (name, colour) in _lanes([*case.tiers, MEAN]):
            found, y = verdict.by_tier[name], place + offset
            if found.low is not None and found.high is not None:
                ends = [100 * found.low, 100 * found.high]
                axes.plot(ends, [y, y], color=colour, linewidth=2.2 if name == MEAN else 1.1)
            marker, size = ("D", 5) if name == MEAN else ("o", 3.5)
            axes.plot([100 * found.mean], [y], marker, color=colour, markersize=size)
    axes.set_xlabel("points")
    return figure


def _rows(title: str, case: Case, variants: list[str]) -> tuple[Figure, Axes]:
    """Axes with a band a variant, and a legend of the tiers."""
    num_lanes = len(case.tiers) + 1
    height = 1.25 + len(variants) * (num_lanes + 1.5) * ROW_INCHES
    figure = new_figure(title, height)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(variants)), [_wrapped(name) for name in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    for place in range(1, len(variants)):
        axes.axhline(place - 0.5, color="#eaeef2", linewidth=0.8)
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    for _, (name, colour) in _lanes([*case.tiers, MEAN]):
        axes.plot([], [], "D" if name == MEAN else "o", color=colour, markersize=4.5, label=name)
    figure.legend(
        loc="outside lower left",
        ncols=num_lanes,
        fontsize=8,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.0,
        labelcolor=INK,
    )
    return figure, axes


def _lanes(names: list[str]) -> list[tuple[float, tuple[str, Colour]]]:
    """Where in a variant's band each tier lies, and its colour; the mean is black and last."""
    colours = shades(names[:-1]) | {names[-1]: BLACK}
    step = 0.8 / max(len(names), 1)
    return [((i - (len(names) - 1) / 2) * step, (n, colours[n])) for i, n in enumerate(names)]


def _wrapped(name: str) -> str:
    """A long name on two or three lines, so that the plot keeps its room."""
    import textwrap

    return "\n".join(textwrap.wrap(name, 18)) or name

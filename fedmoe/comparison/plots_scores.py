"""Plots of scores: every seed's score at every tier, and the paired differences."""

from __future__ import annotations

import statistics
import textwrap
from typing import TYPE_CHECKING

from fedmoe.comparison.result import MEAN
from fedmoe.comparison.study import Case
from fedmoe.comparison.verdicts import verdicts
from fedmoe.report.figures import GRID, INK, MUTED, Colour, dress_rows, legend, new_figure, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = 0.13
"""Height of one tier of one variant."""
UNITS = {"score": (100.0, "percent"), "loss": (1.0, "loss per token")}
"""A factor and the name of an axis, by what is compared."""
TINY = 1e-9
"""Differences of equal scores may be as large, by rounding."""


def tier_scores(case: Case) -> Figure:
    """Draw a row per tier and variant: every seed a dot, their mean a bar."""
    variants, (factor, what) = case.variants, UNITS[case.measure]
    title = f"Test {case.measure} ({what})"
    title += ": a dot is a seed, a bar their mean" if case.pairs == "seeds" else ""
    figure, axes = _rows(title, case, [*variants])
    for place, runs in enumerate(variants.values()):
        for offset, name, colour in _lanes(case):
            values = [factor * case.values(r)[name] for r in runs]
            mean, y = statistics.mean(values), place + offset
            if case.measure == "score":
                axes.plot([0, mean], [y, y], color=colour, linewidth=1.2, alpha=0.35)
            axes.plot([mean], [y], "|", color=colour, markersize=7, markeredgewidth=2)
            look = {"markersize": 3.2, "alpha": 0.75, "clip_on": False}
            axes.plot(values, [y] * len(values), "o", color=colour, **look)
    if case.measure == "score":
        axes.set_xlim(left=0)
    axes.set_xlabel(what)
    return figure


def paired_differences(case: Case) -> Figure | None:
    """Draw each variant's difference to the reference with its interval (a forest plot).

    All intervals hold together, as those of the table.

    None where there is no difference at all.
    """
    from matplotlib.ticker import MaxNLocator

    against, (factor, what) = verdicts(case), UNITS[case.measure]
    if not any(abs(d.mean) > TINY for v in against.values() for d in v.by_tier.values()):
        return None
    unit = "points" if case.measure == "score" else what
    title = f"Difference to {case.reference}, in {unit}"
    if any(d.low is not None for v in against.values() for d in v.by_tier.values()):
        title += ": 95 % for all together"
    figure, axes = _rows(title, case, [*against])
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, verdict in enumerate(against.values()):
        for offset, name, colour in _lanes(case):
            found, y = verdict.by_tier[name], place + offset
            if found.low is not None and found.high is not None:
                ends = [factor * found.low, factor * found.high]
                axes.plot(ends, [y, y], color=colour, linewidth=2.2 if name == MEAN else 1.1)
            marker, size = ("D", 5) if name == MEAN else ("o", 3.5)
            axes.plot([factor * found.mean], [y], marker, color=colour, markersize=size)
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure


def _rows(title: str, case: Case, variants: list[str]) -> tuple[Figure, Axes]:
    """Return axes with a band per variant, and a legend of the tiers."""
    lanes = _lanes(case)
    figure = new_figure(title, 1.25 + len(variants) * (len(lanes) + 1.5) * ROW_INCHES)
    axes = figure.add_subplot()
    for place in range(1, len(variants)):
        axes.axhline(place - 0.5, color=GRID, linewidth=0.8)
    # A long name takes two or three lines, so that the plot keeps its room.
    dress_rows(axes, ["\n".join(textwrap.wrap(name, 18)) or name for name in variants])
    for _, name, colour in lanes:
        axes.plot([], [], "D" if name == MEAN else "o", color=colour, markersize=4.5, label=name)
    legend(figure, len(lanes), handletextpad=0.1, columnspacing=1.0)
    return figure, axes


def _lanes(case: Case) -> list[tuple[float, str, Colour | str]]:
    """Return each tier's offset in a variant's band, name and colour; a mean is black, last."""
    colours = shades(case.tiers) | ({MEAN: INK} if len(case.tiers) > 1 else {})
    step = 0.8 / len(colours)
    middle = (len(colours) - 1) / 2
    return [((i - middle) * step, name, c) for i, (name, c) in enumerate(colours.items())]

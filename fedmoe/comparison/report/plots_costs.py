"""Plots of what a score costs: against bytes, training work and time."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fedmoe.comparison.report.result import MEAN, Result, Spent
from fedmoe.comparison.report.study import Case
from fedmoe.comparison.report.tables import Cost
from fedmoe.report.figures import INK, MARKERS, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC = 20.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""

UNITS = {"bytes both ways": "B", "training work": "FLOP"}
"""Of axes whose neighbouring ticks would read the same with one decimal."""


def score_against(case: Case, cost: Cost) -> Figure | None:
    """Validation score against a cumulative cost, or the last test score where there is none.

    None where no run knows the cost.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

    name, _, text = cost
    curves = {v: _curve(runs, cost) for v, runs in case.variants.items()}
    learned = any(curves.values())
    if not learned:
        curves = {v: _ends(runs, cost) for v, runs in case.variants.items()}
    curves = {v: curve for v, curve in curves.items() if curve}
    if not curves:
        return None
    which = "Validation score" if learned else "Test score after the last round"
    num_columns = 2
    figure = new_figure(f"{which} against {name}", 3.1 + 0.19 * -(-len(curves) // num_columns))
    axes = figure.add_subplot()
    _draw(axes, case, curves, line=learned)
    used = [x for curve in curves.values() for x, _ in curve if x > 0]
    if learned:
        axes.set_xlim(left=0)
    if not learned and used and max(used) / min(used) > LOGARITHMIC:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    plain = FuncFormatter(lambda x, _: text(x))
    axes.xaxis.set_major_formatter(EngFormatter(UNITS[name]) if name in UNITS else plain)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{name}, all clients")
    dress(axes)
    figure.legend(
        loc="outside lower left", ncols=num_columns, fontsize=8, frameon=False, labelcolor=INK
    )
    return figure


def _draw(axes: Axes, case: Case, curves: dict[str, list[tuple[float, float]]], line: bool) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(curves) <= 10 else "tab20"]
    for i, (variant, curve) in enumerate(curves.items()):
        colour = INK if variant == case.reference else colours(i % colours.N)
        axes.plot(
            *zip(*curve, strict=True),
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5 if line else 6,
            linewidth=1.5 if line else 0,
            label=variant,
            markeredgecolor="white",
            markeredgewidth=0.5,
            alpha=1.0 if line else 0.85,
        )


def _curve(runs: list[Result], cost: Cost) -> list[tuple[float, float]]:
    """The mean over seeds of (cost, score), at every round that all of them evaluated."""
    by_round = [{p.round: p for p in r.points} for r in runs]
    common = sorted(set.intersection(*(set(points) for points in by_round)))
    curve = []
    for number in common:
        here = [points[number] for points in by_round]
        if (x := _mean([p.spent for p in here], cost)) is not None:
            curve.append((x, statistics.mean(p.score for p in here)))
    return curve


def _ends(runs: list[Result], cost: Cost) -> list[tuple[float, float]]:
    """The last (cost, test score) of every seed."""
    _, value, _ = cost
    pairs = [(value(r.spent), r.scores[MEAN]) for r in runs]
    return [(x, score) for x, score in pairs if x is not None]


def _mean(spent: list[Spent], cost: Cost) -> float | None:
    _, value, _ = cost
    values = [x for s in spent if (x := value(s)) is not None]
    return statistics.mean(values) if len(values) == len(spent) else None

"""Plots with a line per variant: scores against costs, starved and captured experts over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.comparison.result import MEAN, Result
from fedmoe.comparison.study import Case
from fedmoe.comparison.tables import Cost, mean_if_known
from fedmoe.report import figures
from fedmoe.report.expert_load import CAPTURED, STARVED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]

LOGARITHMIC = 20.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""

ALIKE = 1.05
"""Ratio of the largest to the smallest cost up to which variants cost the same."""

UNITS = {"bytes both ways": "B", "training work": "FLOP"}
"""Ticks of axes whose neighbours would read the same with one decimal."""


def score_against(case: Case, cost: Cost) -> Figure | None:
    """Draw validation score against a cumulative cost, or the last test score without any.

    None where no run knows the cost, or where test scores are all there is and variants cost the
    same.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    name, _, text = cost
    curves = {v: _curve(case, runs, cost) for v, runs in case.variants.items()}
    learned = any(curves.values())
    if not learned:
        curves = {v: _ends(case, runs, cost) for v, runs in case.variants.items()}
        means = [statistics.mean(x for x, _ in curve) for curve in curves.values() if curve]
        if len(means) > 1 and max(means) < ALIKE * min(means):
            return None
    curves = {v: curve for v, curve in curves.items() if curve}
    if not curves:
        return None
    which = f"{'Validation' if learned else 'Test'} {case.measure}"
    which += "" if learned else " after the last round"
    figure = figures.new_figure(f"{which} against {name}", _height(3.1, len(curves)))
    axes = figure.add_subplot()
    styles = _styles(case, [*curves])
    for variant, curve in curves.items():
        axes.plot(
            [x for x, _ in curve],
            [score for _, score in curve],
            linewidth=1.5 if learned else 0,
            markersize=4.5 if learned else 6,
            label=variant,
            **styles[variant],
        )
    used = [x for curve in curves.values() for x, _ in curve if x > 0]
    if learned:
        axes.set_xlim(left=0)
    if not learned and used and max(used) / min(used) > LOGARITHMIC:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    plain = FuncFormatter(lambda x, _: text(x))
    axes.xaxis.set_major_formatter(EngFormatter(UNITS[name]) if name in UNITS else plain)
    if case.measure == "score":
        axes.set_ylim(bottom=0)
        figures.percent_scale(axes)
    axes.set_xlabel(f"{name}, all clients")
    figures.dress(axes)
    figures.legend(figure, 2)
    return figure


def starved_over_rounds(case: Case) -> Figure | None:
    """Draw starved and captured experts in percent in two panels; None if there are none."""
    found: dict[str, np.ndarray] = {}
    for variant, runs in case.variants.items():
        each = [f for r in runs if (f := r.extreme_experts)]
        if each:  # runs that stopped early have fewer rounds
            shortest = min(len(starved) for starved, _ in each)
            found[variant] = np.mean([np.array(f)[:, :shortest] for f in each], axis=0)
    if not any(shares.any() for shares in found.values()):
        return None
    figure = figures.new_figure("Experts that tokens avoid or crowd", _height(2.9, len(found)))
    titles = (f"starved: < {STARVED:g} of equal share", f"captured: > {CAPTURED:g} equal shares")
    styles = _styles(case, [*found])
    panels = zip(figure.subplots(1, 2), titles, strict=True)
    for which, (axes, title) in enumerate(panels):
        for variant, shares in found.items():
            axes.plot(
                range(1, shares.shape[1] + 1),
                shares[which],
                markersize=3.5,
                linewidth=1.3,
                label=variant if which == 0 else None,
                **styles[variant],
            )
        axes.set_title(title, fontsize=9, color=figures.INK, loc="left")
        figures.round_scale(axes)
        figures.percent_scale(axes)
        axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
        figures.dress(axes)
    figures.legend(figure, 2)
    return figure


def _height(inches: float, num_variants: int) -> float:
    """Return the height of a figure with room for a figures.legend of two columns."""
    return inches + 0.19 * -(-num_variants // 2)


def _styles(case: Case, variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker per variant; the reference is black."""
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(variants) <= 10 else "tab20"]
    return {
        variant: {
            "color": figures.INK if variant == case.reference else colours(i % colours.N),
            "marker": figures.MARKERS[i % len(figures.MARKERS)],
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }
        for i, variant in enumerate(variants)
    }


def _curve(case: Case, runs: list[Result], cost: Cost) -> Curve:
    """Return the mean over seeds of (cost, score or loss), for every round that all evaluated."""
    by_round = [{p.round: p for p in r.points} for r in runs]
    common = sorted(set.intersection(*(set(points) for points in by_round)))
    curve = []
    for number in common:
        here = [points[number] for points in by_round]
        if (x := mean_if_known([cost[1](p.spent) for p in here])) is not None:
            curve.append((x, statistics.mean(getattr(p, case.measure) for p in here)))
    return curve


def _ends(case: Case, runs: list[Result], cost: Cost) -> Curve:
    """Return the last (cost, test score or loss) of every seed."""
    pairs = [(cost[1](r.spent), case.values(r)[MEAN]) for r in runs]
    return [(x, score) for x, score in pairs if x is not None]

"""Plots with a line per variant: outcomes against costs, starved and captured experts by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.comparison.result import Result
from fedmoe.comparison.study import Case
from fedmoe.comparison.tables import Cost, mean_if_known
from fedmoe.report import figures
from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.units import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]

LOGARITHMIC = 20.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""

ALIKE = 1.05
"""Ratio of the largest to the smallest cost up to which variants cost the same."""

UNITS = {"bytes both ways": "B", "training work": "FLOP"}
"""Ticks of axes whose neighbours would read the same with one decimal."""


def pareto(case: Case, cost: Cost) -> Figure | None:
    """Draw validation loss or score against a cumulative cost, a panel per tier.

    The grey line is the best that any variant has at that cost. Without validation there are the
    last test results. None where no run knows the cost, or where test results are all there is and
    variants cost the same.
    """
    name, value, _ = cost
    curves = {t: {v: _curve(case, runs, cost, t) for v, runs in case.variants.items()}
              for t in case.tiers}  # fmt: skip
    learned = any(curve for of_tier in curves.values() for curve in of_tier.values())
    if not learned:
        spent = [[x for r in runs if (x := value(r.spent)) is not None]
                 for runs in case.variants.values()]  # fmt: skip
        means = [statistics.mean(found) for found in spent if found]
        if len(means) > 1 and max(means) < ALIKE * min(means):
            return None
        curves = {t: {v: _ends(case, runs, cost, t) for v, runs in case.variants.items()}
                  for t in case.tiers}  # fmt: skip
    shown = [v for v in case.variants if any(of_tier[v] for of_tier in curves.values())]
    if not shown:
        return None
    what = f"{'Validation' if learned else 'Last test'} {case.measure} against {name}"
    better = "lower" if case.measure == "loss" else "higher"
    rows, columns = -(-len(case.tiers) // 2), min(2, len(case.tiers))
    height = _height((2.0 if rows > 1 else 2.6) * rows + 0.6, len(shown))
    figure = figures.new_figure(f"{what}; further left and {better} is better", height)
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    styles = _styles(case, shown)
    for place, (tier, axes) in enumerate(zip(case.tiers, panels, strict=False)):
        axes.step(*_front(case, [*curves[tier].values()], learned), where="post",
                  color=figures.FAINT, linewidth=4, zorder=0)  # fmt: skip
        for variant in shown:
            axes.plot(
                *zip(*curves[tier][variant], strict=True),
                linewidth=1.3 if learned else 0,
                markersize=4,
                label=None if place else variant,
                **styles[variant],
            )
        _scale(case, axes, cost, learned)
        if len(case.tiers) > 1:
            axes.set_title(tier, fontsize=9, color=figures.INK, loc="left")
        if place // 2 < rows - 1 and len(case.tiers) - place > 2:
            axes.set_xlabel("")
    for axes in panels[len(case.tiers) :]:
        axes.set_axis_off()
    figures.legend(figure, 2)
    return figure


def _scale(case: Case, axes: Axes, cost: Cost, learned: bool) -> None:
    """Give a panel its scales, and the cost its name and unit."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    name = cost[0]
    used = [float(x) for line in axes.lines for x in line.get_xdata() if x > 0]  # pyright: ignore
    if learned:
        axes.set_xlim(left=0)
    if not learned and used and max(used) / min(used) > LOGARITHMIC:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 3, 6, 10]))
    if name in UNITS:
        axes.xaxis.set_major_formatter(EngFormatter(UNITS[name]))
        axes.set_xlabel(f"{name}, all clients")
    else:
        seconds, unit = time_unit(max(used, default=0.0))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / seconds:g}"))
        axes.set_xlabel(f"{name}, {unit}")
    if case.measure == "score":
        axes.set_ylim(bottom=0)
        figures.percent_scale(axes)
    figures.dress(axes)


def _front(case: Case, curves: list[Curve], learned: bool) -> tuple[list[float], list[float]]:
    """Return the costs at which a better mean is reached than at any lower cost, and the means."""
    if not learned:
        curves = [[tuple(map(statistics.mean, zip(*c, strict=True)))] for c in curves if c]  # pyright: ignore
    sign = 1 if case.measure == "loss" else -1
    found: Curve = []
    for x, y in sorted((x, sign * y) for curve in curves for x, y in curve):
        if not found or y < found[-1][1]:
            found.append((x, y))
    end = max((x for curve in curves for x, _ in curve), default=0.0)
    costs, best = [x for x, _ in found], [sign * y for _, y in found]
    return [*costs, end], [*best, best[-1]]


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


def _curve(case: Case, runs: list[Result], cost: Cost, tier: str) -> Curve:
    """Return a tier's mean over seeds of (cost, score or loss), for rounds that all evaluated.

    The base model, which cost nothing, is left out: what differs would be small beside it.
    """
    by_round = [{p.round: p for p in r.points} for r in runs]
    common = sorted(set.intersection(*(set(points) for points in by_round)))
    curve = []
    for here in ([points[number] for points in by_round] for number in common):
        values = [(p.losses if case.measure == "loss" else p.scores).get(tier) for p in here]
        x, y = mean_if_known([cost[1](p.spent) for p in here]), mean_if_known(values)
        if x and y is not None:
            curve.append((x, y))
    return curve


def _ends(case: Case, runs: list[Result], cost: Cost, tier: str) -> Curve:
    """Return a tier's last (cost, test score or loss) of every seed."""
    pairs = [(cost[1](r.spent), case.values(r)[tier]) for r in runs]
    return [(x, y) for x, y in pairs if x is not None]

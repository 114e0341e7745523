"""Plots of routing: a heat map of expert load per variant, starved and captured over rounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.comparison.report.experts import mean_load, starved_and_captured
from fedmoe.comparison.report.study import Case
from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.figures import INK, MARKERS, dress, new_figure
from fedmoe.report.plots_experts import colour_bar, load_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLUMNS = 2


def expert_loads(case: Case) -> Figure | None:
    """A small layer-by-expert map a variant, on one colour scale; 1 is the equal share."""
    loads = {v: load for v, runs in case.variants.items() if (load := mean_load(runs)) is not None}
    if not loads:
        return None
    num_rows = math.ceil(len(loads) / NUM_COLUMNS)
    num_layers = max(len(load) for load in loads.values())
    title = "Tokens per expert (across) and layer (down); 1 is the uniform share"
    figure = new_figure(title, 0.7 + num_rows * min(0.45 + 0.12 * num_layers, 2.0))
    grid = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).ravel()
    highest = max(2.0, *(float(np.nanmax(load)) for load in loads.values()))
    image = None
    for axes, (variant, load) in zip(grid, loads.items(), strict=False):
        image = load_map(axes, load, highest)
        axes.set_title(variant, fontsize=8.5, color=INK, loc="left", pad=3)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes in grid[len(loads) :]:
        axes.set_visible(False)
    colour_bar(figure, image, list(grid))
    return figure


def starved_over_rounds(case: Case) -> Figure | None:
    """Two panels, starved and captured experts in percent, a line a variant."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    found = {}
    for variant, runs in case.variants.items():
        each = [f for r in runs if (f := starved_and_captured(r))]
        if each and len({len(f[0]) for f in each}) == 1:
            found[variant] = np.mean(each, axis=0)  # (2, rounds)
    if not found:
        return None
    figure = new_figure("Experts that tokens avoid or crowd", 2.9 + 0.19 * -(-len(found) // 2))
    panels = figure.subplots(1, 2)
    colours = colormaps["tab10" if len(found) <= 10 else "tab20"]
    titles = (f"starved: < {STARVED:g} of equal share", f"captured: > {CAPTURED:g} equal shares")
    for which, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for i, (variant, shares) in enumerate(found.items()):
            axes.plot(
                range(1, shares.shape[1] + 1),
                shares[which],
                markersize=3.5,
                linewidth=1.3,
                color=INK if variant == case.reference else colours(i % colours.N),
                marker=MARKERS[i % len(MARKERS)],
                label=variant if which == 0 else None,
            )
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
        dress(axes)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    return figure

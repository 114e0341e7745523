"""All plots of a case: their file names, captions, and the functions that draw them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fedmoe.comparison.plots_curves import pareto, starved_over_rounds
from fedmoe.comparison.plots_scores import paired_differences, tier_scores
from fedmoe.comparison.result import mean_load
from fedmoe.comparison.study import Case
from fedmoe.comparison.tables import COSTS
from fedmoe.report.plots import Picture, picture
from fedmoe.report.plots_experts import load_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_case(case: Case) -> list[Picture]:
    """Return a picture of every plot that the case has data for."""
    loads = {v: load for v, runs in case.variants.items() if (load := mean_load(runs)) is not None}
    num_layers = max((len(load) for load in loads.values()), default=0)
    plots: list[tuple[str, str, Callable[[], Figure | None]]] = [
        (
            "scores",
            f"Test {case.measure} of every variant at every tier.",
            partial(tier_scores, case),
        ),
        (
            "differences",
            f"Differences to {case.reference}, with intervals that hold together; the thick line "
            "is the mean of tiers.",
            partial(paired_differences, case),
        ),
    ]
    for cost in COSTS:
        name = cost[0].replace(" ", "-")
        caption = f"{case.measure.capitalize()} against {cost[0]} at every tier{case.over_seeds}; "
        caption += "the grey line is the best at that cost."
        plots.append((f"{case.measure}-against-{name}", caption, partial(pareto, case, cost)))
    plots += [
        (
            "expert-load",
            "Tokens per expert in all local training; blue is less than uniform, red more.",
            partial(load_maps, [*loads.items()], 2, min(0.45 + 0.12 * num_layers, 2.0)),
        ),
        (
            "experts-over-rounds",
            f"Share of experts with too few or too many tokens{case.over_seeds}.",
            partial(starved_over_rounds, case),
        ),
    ]
    return [found for plot in plots if (found := picture(*plot))]

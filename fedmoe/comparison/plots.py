"""All plots of a case: their file names, captions, and the functions that draw them."""

from __future__ import annotations

from fedmoe.comparison.plots_curves import score_against, starved_over_rounds
from fedmoe.comparison.plots_scores import paired_differences, tier_scores
from fedmoe.comparison.result import mean_load
from fedmoe.comparison.study import Case
from fedmoe.comparison.tables import COSTS
from fedmoe.report.figures import svg
from fedmoe.report.plots import Picture
from fedmoe.report.plots_experts import load_maps


def draw_case(case: Case) -> list[Picture]:
    """Return a picture of every plot that the case has data for."""
    loads = {v: load for v, runs in case.variants.items() if (load := mean_load(runs)) is not None}
    num_layers = max((len(load) for load in loads.values()), default=0)
    drawn = [
        ("scores", f"Test {case.measure} of every variant at every tier.", tier_scores(case)),
        (
            "differences",
            f"Differences to {case.reference}; the thick line is the mean of tiers.",
            paired_differences(case),
        ),
    ]
    for cost in COSTS:
        name = cost[0].replace(" ", "-")
        caption = f"{case.measure.capitalize()} against {cost[0]}{case.over_seeds}."
        drawn.append((f"score-against-{name}", caption, score_against(case, cost)))
    drawn += [
        (
            "expert-load",
            "Tokens per expert in all local training; blue is less than uniform, red more.",
            load_maps([*loads.items()], 2, row_inches=min(0.45 + 0.12 * num_layers, 2.0)),
        ),
        (
            "experts-over-rounds",
            f"Share of experts with too few or too many tokens{case.over_seeds}.",
            starved_over_rounds(case),
        ),
    ]
    return [Picture(name, text, svg(figure)) for name, text, figure in drawn if figure is not None]

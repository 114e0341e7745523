"""All plots of a case: their file names, what each shows, and the function that draws it."""

from __future__ import annotations

from fedmoe.comparison.report.plots_costs import score_against
from fedmoe.comparison.report.plots_experts import expert_loads, starved_over_rounds
from fedmoe.comparison.report.plots_scores import paired_differences, tier_scores
from fedmoe.comparison.report.study import Case
from fedmoe.comparison.report.tables import COSTS
from fedmoe.report.figures import png
from fedmoe.report.plots import Picture


def draw_case(case: Case) -> list[Picture]:
    """Return every plot that the case has data for."""
    drawn = [
        ("scores", "Test score of every variant at every tier.", tier_scores(case)),
        (
            "differences",
            f"Paired differences to {case.reference}; the thick line is the mean of tiers.",
            paired_differences(case),
        ),
    ]
    for cost in COSTS:
        name = cost[0].replace(" ", "-")
        caption = f"What a score costs in {cost[0]}; mean over seeds, or a mark a seed."
        drawn.append((f"score-against-{name}", caption, score_against(case, cost)))
    drawn += [
        (
            "expert-load",
            "Where the tokens of all local training went; blue is less than uniform, red more.",
            expert_loads(case),
        ),
        (
            "experts-over-rounds",
            "Share of experts with too few or too many tokens, mean over seeds.",
            starved_over_rounds(case),
        ),
    ]
    return [Picture(name, text, png(figure)) for name, text, figure in drawn if figure is not None]

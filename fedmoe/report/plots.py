"""All plots of a report: their file names, what each shows, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.report import plots_cost, plots_experts, plots_scores, plots_time
from fedmoe.report.figures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run


@dataclass(frozen=True)
class Plot:
    """A plot and the sentence under it; `draw` returns None where the run has no data for it."""

    name: str
    caption: str
    draw: Callable[[Run], Figure | None]


@dataclass(frozen=True)
class Picture:
    """A drawn plot."""

    name: str
    caption: str
    png: bytes


PLOTS = (
    Plot(
        "score-per-round",
        "Score of the global adapter on validation data, at each tier's number of experts k.",
        plots_scores.score_per_round,
    ),
    Plot(
        "score-over-time",
        "The same score against virtual time: each round lasts as long as its slowest client.",
        plots_scores.score_over_time,
    ),
    Plot(
        "virtual-time",
        "Where the virtual time of a mean client's round goes, and how long it waits for others.",
        plots_time.virtual_time,
    ),
    Plot(
        "loss-per-round",
        "Loss of the global adapter on validation data, at each tier's number of experts k.",
        plots_scores.loss_per_round,
    ),
    Plot(
        "test-scores",
        "Score on test data in percent, without an adapter and with the last one.",
        plots_scores.test_scores,
    ),
    Plot(
        "client-losses",
        "What local training did to each client's loss on its own data.",
        plots_scores.client_losses,
    ),
    Plot(
        "tier-costs",
        "One client of each tier: bytes both ways in a round; work and time of training.",
        plots_cost.tier_costs,
    ),
    Plot(
        "expert-load",
        "Tokens routed to each expert in all local training, relative to an equal share.",
        plots_experts.expert_load,
    ),
    Plot(
        "client-expert-load",
        "The same for each client (for each tier in runs of many clients).",
        plots_experts.client_expert_load,
    ),
)


def draw_plots(run: Run) -> list[Picture]:
    """Return every plot the run has data for."""
    pictures = []
    for plot in PLOTS:
        if (figure := plot.draw(run)) is not None:
            pictures.append(Picture(plot.name, plot.caption, png(figure)))
    return pictures

"""All plots of a report: their file names, captions, and the functions that draw them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.report import plots_costs, plots_experts, plots_scores
from fedmoe.report.figures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

Draw = Callable[["Run"], "Figure | None"]

PLOTS: dict[str, tuple[str, Draw]] = {
    "score-per-round": (
        "Score of the global adapter on validation data, at each tier's number of experts k.",
        plots_scores.score_per_round,
    ),
    "score-over-time": (
        "The same score against virtual time: each round lasts as long as its slowest client.",
        plots_scores.score_over_time,
    ),
    "virtual-time": (
        "Where the virtual time of a mean client's round goes, and how long it waits for others.",
        plots_costs.virtual_time,
    ),
    "loss-per-round": (
        "Loss of the global adapter on validation data, at each tier's number of experts k.",
        plots_scores.loss_per_round,
    ),
    "test-scores": (
        "Score on test data in percent, without an adapter and with the last one.",
        plots_scores.test_scores,
    ),
    "client-losses": (
        "Each client's loss on its own data, before and after all its local training.",
        plots_scores.client_losses,
    ),
    "tier-costs": (
        "One client of each tier: bytes both ways in a round; work and time of training.",
        plots_costs.tier_costs,
    ),
    "expert-load": (
        "Tokens routed to each expert in all local training, relative to an equal share.",
        plots_experts.expert_load,
    ),
    "client-expert-load": (
        "The same for each client (for each tier in runs of many clients).",
        plots_experts.client_expert_load,
    ),
}
"""By file name: the sentence below the plot, and a function that returns None without data."""


@dataclass(frozen=True)
class Picture:
    """A drawn plot with its caption."""

    name: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds all of it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def draw_plots(run: Run) -> list[Picture]:
    """Return a picture of every plot that the run has data for."""
    drawn = {name: (caption, draw(run)) for name, (caption, draw) in PLOTS.items()}
    return [Picture(name, text, png(found)) for name, (text, found) in drawn.items() if found]

"""All plots of a report by file name; the sentence below a plot is its function's docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.report import plots_clients, plots_costs, plots_experts, plots_scores, privacy
from fedmoe.report.figures import on_page, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

PLOTS: dict[str, Callable[[Run], Figure | None]] = {
    "score-per-round": plots_scores.score_per_round,
    "score-over-time": plots_scores.score_over_time,
    "virtual-time": plots_costs.virtual_time,
    "loss-per-round": plots_scores.loss_per_round,
    "training-loss": plots_scores.training_loss,
    "epsilon-per-round": privacy.epsilon_per_round,
    "test-scores": plots_scores.test_scores,
    "client-scores": plots_clients.client_scores,
    "client-losses": plots_scores.client_losses,
    "tier-costs": plots_costs.tier_costs,
    "expert-load": plots_experts.expert_load,
    "client-expert-load": plots_experts.client_expert_load,
}
"""Functions that return None where a run has no data for them."""


@dataclass(frozen=True)
class Picture:
    """A drawn plot with its caption."""

    name: str
    caption: str
    svg: str
    """As a file."""

    @property
    def on_page(self) -> str:
        """The plot as a part of a page, whose colours it takes."""
        return on_page(self.svg)


def draw_plots(run: Run) -> list[Picture]:
    """Return a picture of every plot that the run has data for."""
    pictures = []
    for name, draw in PLOTS.items():
        if figure := draw(run):
            caption = (inspect.getdoc(draw) or name).partition("\n")[0]
            pictures.append(Picture(name, caption, svg(figure)))
    return pictures

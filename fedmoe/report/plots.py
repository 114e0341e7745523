"""All plots of a report by file name; the sentence below a plot is its function's docstring."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.errors import FedMoEWarning
from fedmoe.report import plots_clients, plots_costs, plots_experts, plots_scores, privacy
from fedmoe.report.figures import on_page, svg
from fedmoe.system.files import write_text

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
    """A plot with its caption: drawn, or with the reason why it could not be."""

    name: str
    caption: str
    svg: str
    """As a file; empty for one that could not be drawn."""
    fault: str = ""

    @property
    def on_page(self) -> str:
        """The plot as a part of a page, whose colours it takes."""
        return on_page(self.svg)


def draw_plots(run: Run) -> list[Picture]:
    """Return a picture of every plot that the run has data for."""
    captions = {name: (inspect.getdoc(draw) or name) for name, draw in PLOTS.items()}
    drawn = (
        picture(name, captions[name].partition("\n")[0], partial(draw, run))
        for name, draw in PLOTS.items()
    )
    return [found for found in drawn if found]


def picture(name: str, caption: str, draw: Callable[[], Figure | None]) -> Picture | None:
    """Return a plot, or None without data; one that cannot be drawn says why in its place."""
    try:
        with np.errstate(over="raise", invalid="raise"):  # such a picture shows nothing
            figure = draw()
            return Picture(name, caption, svg(figure)) if figure else None
    except Exception as error:  # whatever numbers clients report, the report must be written
        said = f"This plot could not be drawn: {type(error).__name__}: {str(error)[:200]}"
        warnings.warn(f"plot {name}: {said}", FedMoEWarning, stacklevel=2)
        return Picture(name, caption, "", said)


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Write `NAME.svg` of every plot; what an earlier report drew of a failed one is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in pictures:
        path = folder / f"{found.name}.svg"
        if found.fault:
            path.unlink(missing_ok=True)
        else:
            write_text(path, found.svg)

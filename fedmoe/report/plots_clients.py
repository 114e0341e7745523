"""The plot of clients that score on their own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmoe.report import figures
from fedmoe.report.clients import own_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

MOST_ROWS = 40
"""Clients that are shown; of more, those with the lowest scores."""


def client_scores(run: Run) -> Figure | None:
    """Each client's test score on its own rows, without an adapter and with the last one."""
    scores = [s for s in own_scores(run) if s.after]
    # A score that nobody reaches tells nothing; the loss does.
    what = "score" if any(s.after["score"] for s in scores) else "loss"
    # A value that was not finite is null in the ledger.
    scores = [s for s in scores if s.after[what] is not None]
    if not scores:
        return None
    shown = scores[:MOST_ROWS]
    worst = "lowest" if what == "score" else "highest"
    which = f"the {MOST_ROWS} {worst} of {len(scores)}" if shown != scores else "each client"
    label = f"test {run.score_name}" if what == "score" else "test loss per token"
    title = f"{label.capitalize()} of {which}: base (open), fine-tuned (filled)"
    figure = figures.new_figure(title, max(2.0, 0.9 + 0.235 * len(shown)))
    axes = figure.add_subplot()
    colours = figures.shades([tier.name for tier in run.tiers])
    for y, s in enumerate(shown):
        before, after, colour = s.before.get(what), s.after[what], colours[s.tier.name]
        if before is not None:
            axes.plot([before, after], [y, y], color=colour, linewidth=2, alpha=0.45)
            axes.plot(before, y, "o", color="white", markeredgecolor=colour, markersize=6)
        axes.plot(after, y, "o", color=colour, markersize=6)
    axes.set_xlabel(f"{label} on the client's own rows")
    figures.dress_rows(axes, [run.label_of(s.client, s.tier) for s in shown])
    if what == "score":
        figures.percent_scale(axes, "x")
    return figure

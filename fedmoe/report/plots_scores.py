"""Plots of learning: loss and score per round, test scores, local loss per client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedmoe.report.figures import (
    FAINT,
    INK,
    MARKERS,
    MUTED,
    dress,
    new_figure,
    spread,
    text_colour,
    tier_colours,
)
from fedmoe.report.units import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

MOST_ROWS = 40
"""Clients beyond which a plot shows tiers instead."""


def loss_per_round(run: Run) -> Figure | None:
    """Validation loss against rounds, one line per tier."""
    return _per_round(run, "loss", "Validation loss per token", percent=False)


def score_per_round(run: Run) -> Figure | None:
    """Validation score against rounds, one line per tier."""
    return _per_round(run, "score", f"Validation {run.score_name}", percent=True)


def score_over_time(run: Run) -> Figure | None:
    """Validation score against the fleet's virtual clock, one line per tier."""
    title = f"Validation {run.score_name} against the fleet's own time"
    return (
        _per_round(run, "score", title, percent=True, virtual=True) if run.virtual_clock else None
    )


def _per_round(
    run: Run, value: str, title: str, percent: bool, virtual: bool = False
) -> Figure | None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    curves = {tier.name: run.curve("validation", tier.name) for tier in run.tiers}
    if not any(curves.values()):
        return None
    figure = new_figure(title)
    axes = figure.add_subplot()
    colours = tier_colours(run.tiers)
    length, unit = time_unit(max(run.virtual_clock.values(), default=0.0))
    for i, tier in enumerate(run.tiers):
        # A round that was interrupted may have scores and no line of its own.
        points = [p for p in curves[tier.name] if not virtual or p["round"] in run.virtual_clock]
        rounds = [p["round"] for p in points]
        axes.plot(
            [run.virtual_clock[r] / length for r in rounds] if virtual else rounds,
            [_number(p[value]) for p in points],
            color=colours[tier.name],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5.5,
            linewidth=1.8,
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
        )
    axes.set_xlabel(f"virtual {unit}" if virtual else "round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=not virtual, min_n_ticks=1))
    if virtual:
        axes.set_xlim(left=0)
    axes.margins(x=0.02, y=0.08)
    if percent:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    dress(axes)
    _label_ends(axes, run, value)
    return figure


def _label_ends(axes: Axes, run: Run, value: str) -> None:
    """Write each tier's name at the end of its line, apart from each other."""
    ends = {}
    for tier in run.tiers:
        known = [p for p in run.curve("validation", tier.name) if p[value] is not None]
        if known:
            ends[tier.name] = (f"{tier.name} (k={tier.top_k})", known[-1][value])
    low, high = axes.get_ylim()
    heights = spread([height for _, height in ends.values()], gap=0.075 * (high - low))
    colours = tier_colours(run.tiers)
    for (name, (text, _)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            text,
            xy=(1, height),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=text_colour(colours[name]),
            annotation_clip=False,
        )


def test_scores(run: Run) -> Figure | None:
    """Test score per tier: the base model beside the adapter after the last round, if tested."""
    from matplotlib.ticker import PercentFormatter

    pairs = {tier: run.curve("test", tier.name) for tier in run.tiers}
    if not any(point["round"] for points in pairs.values() for point in points):
        return None
    figure = new_figure(f"Test {run.score_name}: base model (grey), then fine-tuned")
    axes = figure.add_subplot()
    colours = tier_colours(run.tiers)
    for x, (tier, points) in enumerate(pairs.items()):
        for point in points[:1] + points[1:][-1:]:
            base = point["round"] == 0
            height = _number(point["score"])
            axes.bar(
                x + (-0.2 if base else 0.2),
                height,
                width=0.38,
                color=FAINT if base else colours[tier.name],
            )
            axes.annotate(
                f"{100 * height:.1f}",
                (x + (-0.2 if base else 0.2), height),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=MUTED if base else INK,
            )
    axes.set_xticks(range(len(pairs)), [f"{tier.name}\nk = {tier.top_k}" for tier in pairs])
    axes.set_xlim(-0.6, len(pairs) - 0.4)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.margins(y=0.1)
    dress(axes)
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    return figure


def client_losses(run: Run) -> Figure | None:
    """Each client's local loss before its first round and after its last."""
    rows = _loss_rows(run)
    if not rows:
        return None
    title = "Local loss: before the first round (open), after the last (filled)"
    figure = new_figure(title, max(2.0, 0.9 + 0.235 * len(rows)))
    axes = figure.add_subplot()
    colours = tier_colours(run.tiers)
    for y, (_, tier, before, after) in enumerate(rows):
        axes.plot([before, after], [y, y], color=colours[tier], linewidth=2, alpha=0.45)
        axes.plot(before, y, "o", color="white", markeredgecolor=colours[tier], markersize=6)
        axes.plot(after, y, "o", color=colours[tier], markersize=6)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("loss per token on the client's own data")
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def _loss_rows(run: Run) -> list[tuple[str, str, float, float]]:
    """Label, tier and the two losses, per client; per tier where clients are too many to list."""
    rows = []
    for tier in run.tiers:
        pairs = {}
        for client in sorted(tier.clients):
            if done := run.ok(client=client):
                pairs[client] = (_number(done[0]["loss_before"]), _number(done[-1]["loss_after"]))
        if run.header["num_clients"] <= MOST_ROWS:
            rows += [(f"{c} · {tier.name} k={tier.top_k}", tier.name, *p) for c, p in pairs.items()]
        elif pairs:
            means = [sum(side) / len(pairs) for side in zip(*pairs.values(), strict=True)]
            label = f"{tier.name} k={tier.top_k}, mean of {len(pairs)}"
            rows.append((label, tier.name, means[0], means[1]))
    return rows


def _number(value: float | None) -> float:
    """A loss that was not finite is null in the ledger; a plot leaves a gap."""
    return math.nan if value is None else value

"""Plots of learning: loss and score per round, test scores, local loss per client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedmoe.report import figures
from fedmoe.report.facts import published
from fedmoe.report.units import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.report.ledger import Record
    from fedmoe.report.run import Run

MOST_ROWS = 40
"""Clients beyond which a plot shows tiers instead."""
MOST_DOTS = 400
"""Client rounds beyond which a plot shows their means alone."""
DOT = {"markersize": 4.5, "alpha": 0.7, "markeredgewidth": 0}


def loss_per_round(run: Run) -> Figure | None:
    """Validation loss at each tier's number of experts k; round 0: the base model on test data."""
    return _per_round(run, "loss", "Validation loss per token")


def score_per_round(run: Run) -> Figure | None:
    """Validation score at each tier's number of experts k; round 0: the base model on test data."""
    if run.measure != "score":
        return None
    return _per_round(run, "score", f"Validation {run.score_name}")


def score_over_time(run: Run) -> Figure | None:
    """Validation score against virtual time: each round lasts as long as its slowest client."""
    if not run.virtual_clock or run.measure != "score":
        return None
    return _per_round(
        run, "score", f"Validation {run.score_name} against virtual time", virtual=True
    )


def _per_round(run: Run, value: str, title: str, virtual: bool = False) -> Figure | None:
    if not any(run.curves("validation")):
        return None
    figure = figures.new_figure(title)
    axes = figure.add_subplot()
    colours = figures.shades([tier.name for tier in run.tiers])
    clock = {0: 0.0} | run.virtual_clock
    length, unit = time_unit(max(clock.values()))
    for i, tier in enumerate(run.tiers):
        # A round that was interrupted may have scores and no line of its own.
        points = [p for p in run.learning(tier.name) if not virtual or p["round"] in clock]
        rounds = [p["round"] for p in points]
        axes.plot(
            [clock[r] / length for r in rounds] if virtual else rounds,
            [_number(p[value]) for p in points],
            **figures.line_style(i, len(run.tiers)),
            color=colours[tier.name],
            clip_on=False,
        )
    axes.margins(x=0.02, y=0.08)
    if virtual:
        axes.set_xlabel(f"virtual {unit}")
        axes.set_xlim(left=0)
    else:
        figures.round_scale(axes)
    if value == "score":
        axes.set_ylim(bottom=0)
        figures.percent_scale(axes)
    figures.dress(axes)
    _label_ends(axes, run, value, colours)
    return figure


def _published(axes: Axes, scores: dict[str, float]) -> None:
    """Draw what others published as lines, named above their left ends."""
    for whose, height in scores.items():
        axes.axhline(height, color=figures.MUTED, linewidth=1, linestyle="--", zorder=0)
        figures.write(axes, whose, (0, height), (3, 5), xycoords=("axes fraction", "data"))


def _label_ends(axes: Axes, run: Run, value: str, colours: dict[str, figures.Colour]) -> None:
    """Write each tier's name at the end of its line, apart from each other."""
    ends = {}
    for tier in run.tiers:
        known = [p for p in run.learning(tier.name) if p[value] is not None]
        if known:
            ends[tier.name] = (f"{tier.name} (k={tier.top_k})", known[-1][value])
    low, high = axes.get_ylim()
    heights = figures.spread([height for _, height in ends.values()], gap=0.075 * (high - low))
    for (name, (text, _)), height in zip(ends.items(), heights, strict=True):
        look = {"fontsize": 9, "color": figures.text_colour(colours[name])}
        figures.write(axes, text, (1, height), (8, 0), xycoords=("axes fraction", "data"), **look)


def test_scores(run: Run) -> Figure | None:
    """Base model and last adapter on test data, at each tier's number of experts k."""
    value = run.measure
    pairs = {tier: run.curve("test", tier.name) for tier in run.tiers}
    if not any(p["round"] for points in pairs.values() for p in points):
        return None
    figure = figures.new_figure(f"Test {run.measure_name}: base model (grey), then fine-tuned")
    axes = figure.add_subplot()
    colours = figures.shades([tier.name for tier in pairs])
    for place, (tier, points) in enumerate(pairs.items()):
        for point in points[:1] + points[1:][-1:]:
            base, height = point["round"] == 0, _number(point[value])
            x, colour = (place - 0.2, figures.FAINT) if base else (place + 0.2, colours[tier.name])
            bar = axes.bar(x, height, width=0.38, color=colour)
            ink = figures.MUTED if base else figures.INK
            text = f"{100 * height:.1f}" if value == "score" else f"{height:.2f}"
            axes.bar_label(bar, [text], padding=2, fontsize=9, color=ink)
    axes.set_xticks(range(len(pairs)), [f"{tier.name}\nk = {tier.top_k}" for tier in pairs])
    axes.set_xlim(-0.6, len(pairs) - 0.4)
    if value == "score":
        figures.percent_scale(axes)
        _published(axes, published(run))
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    figures.dress(axes)
    axes.tick_params(axis="x", length=0, labelcolor=figures.INK)
    return figure


def training_loss(run: Run) -> Figure | None:
    """Mean loss of a round's clients on their own data, before and after they train; a dot each."""
    by_round: dict[int, list[Record]] = {}
    for line in run.ok():
        if None not in (line.get("loss_before"), line.get("loss_after")):
            by_round.setdefault(line["round"], []).append(line)
    if not by_round:
        return None
    figure = figures.new_figure("Loss in training, mean of each round's clients")
    axes = figure.add_subplot()
    if sum(map(len, by_round.values())) <= MOST_DOTS:
        colours = figures.shades([tier.name for tier in run.tiers])
        for tier, colour in colours.items():
            dots = [(c["round"], c["loss_after"]) for c in run.ok(tier=tier) if c.get("loss_after")]
            axes.plot(*zip(*dots, strict=True) if dots else ([], []), "o", color=colour, **DOT)
    ends = []
    for side, style in (("loss_before", ":"), ("loss_after", "-")):
        means = [sum(c[side] for c in lines) / len(lines) for lines in by_round.values()]
        axes.plot([*by_round], means, style, color=figures.INK, linewidth=1.6)
        ends.append(means[-1])
    axes.margins(x=0.04)
    axes.set_ylim(bottom=0)
    look = {"fontsize": 9, "xycoords": ("axes fraction", "data")}
    heights = figures.spread(ends, gap=0.075 * axes.get_ylim()[1])
    for text, height in zip(("before", "after"), heights, strict=True):
        figures.write(axes, text, (1, height), (8, 0), **look)
    figures.round_scale(axes)
    figures.dress(axes)
    return figure


def client_losses(run: Run) -> Figure | None:
    """Each client's loss on its own data, before and after all its local training."""
    rows = [] if run.private else _loss_rows(run)
    if not rows:
        return None
    title = "Local loss: before the first round (open), after the last (filled)"
    figure = figures.new_figure(title, max(2.0, 0.9 + 0.235 * len(rows)))
    axes = figure.add_subplot()
    colours = figures.shades([tier.name for tier in run.tiers])
    for y, (_, tier, before, after) in enumerate(rows):
        axes.plot([before, after], [y, y], color=colours[tier], linewidth=2, alpha=0.45)
        axes.plot(before, y, "o", color="white", markeredgecolor=colours[tier], markersize=6)
        axes.plot(after, y, "o", color=colours[tier], markersize=6)
    axes.set_xlabel("loss per token on the client's own data")
    figures.dress_rows(axes, [label for label, *_ in rows])
    return figure


def _loss_rows(run: Run) -> list[tuple[str, str, float, float]]:
    """Return label, tier and the two losses, per client; per tier where clients are many."""
    rows = []
    for tier in run.tiers:
        pairs = {}
        for client in sorted(tier.clients):
            if done := run.ok(client=client):
                pairs[client] = (
                    _number(done[0].get("loss_before")),
                    _number(done[-1].get("loss_after")),
                )
        if run.header["num_clients"] <= MOST_ROWS:
            rows += [(run.label_of(c, tier), tier.name, *p) for c, p in pairs.items()]
        elif pairs:
            means = [sum(side) / len(pairs) for side in zip(*pairs.values(), strict=True)]
            label = f"{tier.name} k={tier.top_k}, mean of {len(pairs)}"
            rows.append((label, tier.name, means[0], means[1]))
    return rows


def _number(value: float | None) -> float:
    """Return NaN, which a plot leaves out, for a null: a value that was not finite."""
    return math.nan if value is None else value

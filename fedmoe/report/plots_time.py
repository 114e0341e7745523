"""The plot of where virtual time goes: down, compute, up, and waiting for slower clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmoe.devices.clock import client_time
from fedmoe.report.figures import FAINT, INK, MUTED, dress, new_figure
from fedmoe.report.units import seconds_text, time_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run, TierCost

PARTS = {
    "latency": MUTED,
    "down": "#9ecae1",
    "compute": "#08306b",
    "up": "#4292c6",
    "waiting": FAINT,
}
"""What a client's time goes into, in its order, and the colour of each."""


def virtual_time(run: Run) -> Figure | None:
    """A bar per tier: the mean virtual seconds of its client rounds, stacked by where they go."""
    split = {tier: means for tier in run.tiers if (means := mean_parts(run, tier))}
    if not split:
        return None
    title = "Where virtual time goes in a client's round"
    figure = new_figure(title, 1.5 + 0.36 * len(split))
    axes = figure.add_subplot()
    longest = max(sum(means.values()) for means in split.values())
    length, unit = time_unit(longest)
    lefts = [0.0] * len(split)
    for part, colour in PARTS.items():
        widths = [means[part] / length for means in split.values()]
        axes.barh(range(len(split)), widths, left=lefts, color=colour, height=0.62, label=part)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for y, means in enumerate(split.values()):
        busy = sum(means.values()) - means["waiting"]
        axes.annotate(
            seconds_text(busy),
            (busy / length, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xlim(0, 1.15 * longest / length)
    labels = [f"{t.name} · {t.device.label}" if t.device else t.name for t in split]
    axes.set_yticks(range(len(split)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(f"virtual {unit}")
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower left",
        ncols=len(PARTS),
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.4,
    )
    return figure


def mean_parts(run: Run, tier: TierCost) -> dict[str, float]:
    """Mean virtual seconds of a tier's client rounds by part; empty where there are none.

    Waiting is what is left of the round when the client's update has arrived.
    """
    lasted = {r["round"]: r["virtual_seconds"] for r in run.rounds if "virtual_seconds" in r}
    done = [c for c in run.ok(tier=tier.name) if c["round"] in lasted]
    if tier.device is None or not done:
        return {}
    times = [client_time(tier.device, line) for line in done]
    sums = {part: sum(getattr(t, part) for t in times) for part in PARTS if part != "waiting"}
    sums["waiting"] = sum(lasted[c["round"]] - c["virtual_seconds"] for c in done)
    return {part: total / len(done) for part, total in sums.items()}

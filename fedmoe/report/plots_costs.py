"""Plots of what a client costs: bytes, work and seconds per tier, and where virtual time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedmoe.devices.clock import client_time
from fedmoe.report.figures import FAINT, INK, MUTED, dress_rows, legend, new_figure, shades, write
from fedmoe.report.units import DASH, bytes_text, flops_text, seconds_text, time_unit

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
"""The parts of a client's virtual round in their order, with their colours."""


def tier_costs(run: Run) -> Figure:
    """One client of each tier: bytes both ways in a round; work and time of training."""
    panels: list[tuple[str, list[float | None], Callable[[float], str]]] = [
        ("one round", [float(t.bytes_down + t.bytes_up) for t in run.tiers], bytes_text),
        ("one token", [t.train_flops_per_token for t in run.tiers], flops_text),
        ("1,000 tokens", [seconds_per_token(run, t) for t in run.tiers], _milli),
    ]
    title = "What one client transfers, computes and waits for"
    figure = new_figure(title, 1.1 + 0.34 * len(run.tiers))
    colours = [*shades([tier.name for tier in run.tiers]).values()]
    for i, (axes, (unit, values, text)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True)
    ):
        widths = [value or 0.0 for value in values]
        bars = axes.barh(range(len(widths)), widths, color=colours, height=0.62)
        labels = [DASH if value is None else text(value) for value in values]
        axes.bar_label(bars, labels, padding=3, fontsize=8.5, color=INK)
        axes.set_xlim(0, 1.65 * max(widths) or 1.0)
        axes.set_xticks([])
        dress_rows(axes, [f"{t.name} k={t.top_k}" for t in run.tiers], grid="")
        axes.set_title(unit, loc="left", fontsize=9, color=MUTED)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", labelleft=i == 0)
    return figure


def seconds_per_token(run: Run, tier: TierCost) -> float | None:
    """Return the seconds of local training per trained token, over all of a tier's rounds."""
    done = run.ok(tier=tier.name)
    tokens = sum(c.get("tokens", 0) for c in done)
    return sum(c.get("seconds", 0) for c in done) / tokens if tokens else None


def virtual_time(run: Run) -> Figure | None:
    """Parts of a mean client's virtual round, its waiting for others among them."""
    split = {tier: means for tier in run.tiers if (means := mean_parts(run, tier))}
    if not split:
        return None
    figure = new_figure("Where virtual time goes in a client's round", 1.5 + 0.36 * len(split))
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
        write(axes, seconds_text(busy), (busy / length, y), (4, 0))
    axes.set_xlim(0, 1.15 * longest / length)
    axes.set_xlabel(f"virtual {unit}")
    dress_rows(axes, [f"{t.name} · {t.device.label}" if t.device else t.name for t in split])
    legend(figure, len(PARTS), handlelength=1.2, columnspacing=1.4)
    return figure


def mean_parts(run: Run, tier: TierCost) -> dict[str, float]:
    """Return the mean virtual seconds of a tier's client rounds by part; empty without any.

    Waiting is the rest of the round after the client's update has arrived.
    """
    lasted = {r["round"]: r["virtual_seconds"] for r in run.rounds if "virtual_seconds" in r}
    done = [c for c in run.ok(tier=tier.name) if c["round"] in lasted]
    if tier.device is None or not done:
        return {}
    times = [client_time(tier.device, line) for line in done]
    sums = {part: sum(getattr(t, part) for t in times) for part in PARTS if part != "waiting"}
    sums["waiting"] = sum(lasted[c["round"]] - c["virtual_seconds"] for c in done)
    return {part: total / len(done) for part, total in sums.items()}


def _milli(seconds_per_token: float) -> str:
    return f"{1000 * seconds_per_token:.2f} s"

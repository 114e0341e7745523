"""The plot of what a budget tier saves: bytes on the wire, FLOPs and seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedmoe.report.figures import INK, MUTED, dress, new_figure, tier_colours
from fedmoe.report.units import DASH, bytes_text, flops_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run, TierCost


def tier_costs(run: Run) -> Figure:
    """Three panels with a bar per tier; time and work are per token, as clients' data differ."""
    panels: list[tuple[str, list[float | None], Callable[[float], str]]] = [
        ("one round", [float(t.bytes_down + t.bytes_up) for t in run.tiers], bytes_text),
        ("one token", [t.train_flops_per_token for t in run.tiers], flops_text),
        ("1,000 tokens", [seconds_per_token(run, t) for t in run.tiers], _milli),
    ]
    title = "What one client transfers, computes and waits for"
    figure = new_figure(title, 1.1 + 0.34 * len(run.tiers))
    colours = [*tier_colours(run.tiers).values()]
    for i, (axes, (unit, values, text)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True)
    ):
        widths = [value or 0.0 for value in values]
        axes.barh(range(len(widths)), widths, color=colours, height=0.62)
        for y, value in enumerate(values):
            axes.annotate(
                DASH if value is None else text(value),
                (value or 0.0, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
            )
        axes.set_xlim(0, 1.65 * max(widths) or 1.0)
        axes.set_xticks([])
        axes.set_yticks(range(len(widths)), [f"{t.name} k={t.top_k}" for t in run.tiers])
        dress(axes, grid="")
        axes.set_title(unit, loc="left", fontsize=9, color=MUTED)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelleft=i == 0)
    figure.axes[0].invert_yaxis()
    return figure


def seconds_per_token(run: Run, tier: TierCost) -> float | None:
    """Seconds of local training per trained token, over all of a tier's client rounds."""
    done = run.ok(tier=tier.name)
    tokens = sum(c["tokens"] for c in done)
    return sum(c["seconds"] for c in done) / tokens if tokens else None


def _milli(seconds_per_token: float) -> str:
    return f"{1000 * seconds_per_token:.2f} s"

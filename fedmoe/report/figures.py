"""The look that all plots share: size, ink, one colour per tier, labels beside what they name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.report.run import TierCost

DPI = 110
INK = "#1f2328"
MUTED = "#656d76"
FAINT = "#d0d7de"
WIDTH = 5.4
MARKERS = "os^DvPX*"

Colour = tuple[float, float, float]


def new_figure(title: str, height: float = 3.4) -> Figure:
    """A figure with a title that knows no pyplot: safe in threads, and nothing to close."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout, facecolor="white")
    # Above the whole figure, not the axes: there a long title would run out of the picture.
    figure.suptitle(title, x=0.1 / WIDTH, ha="left", fontsize=10.5, color=INK)
    return figure


def dress(axes: Axes, grid: Literal["", "x", "y"] = "y") -> None:
    """Give axes the shared look: small grey ticks, no box, faint lines across `grid`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=9, color=FAINT, labelcolor=MUTED)
    axes.xaxis.label.set(fontsize=9, color=MUTED)
    axes.yaxis.label.set(fontsize=9, color=MUTED)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#eaeef2", linewidth=0.8)


def tier_colours(tiers: Sequence[TierCost]) -> dict[str, Colour]:
    """A colour per tier: the more experts, the darker, also for the colour-blind and in grey."""
    return shades([tier.name for tier in tiers])


def shades(names: Sequence[str]) -> dict[str, Colour]:
    """A colour per name, from light to dark."""
    from matplotlib import colormaps

    # Viridis without its yellow end, which white paper swallows.
    light, dark = 0.74, 0.08
    step = (light - dark) / max(len(names) - 1, 1)
    places = [light - i * step for i in range(len(names))] if len(names) > 1 else [0.3]
    return {name: colormaps["viridis"](s)[:3] for name, s in zip(names, places, strict=True)}


def text_colour(colour: Colour) -> Colour:
    """A darker shade of a line's colour, in which small letters can be read."""
    red, green, blue = colour
    return (0.62 * red, 0.62 * green, 0.62 * blue)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed to be at least `gap` apart, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[tuple[float, int]] = []  # centre and size of labels that touch
    for i in order:
        centre, size = positions[i], 1
        while groups and centre - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            other, number = groups.pop()
            centre = (centre * size + other * number) / (size + number)
            size += number
        groups.append((centre, size))
    moved = [c + gap * (i - (size - 1) / 2) for c, size in groups for i in range(size)]
    placed = dict(zip(order, moved, strict=True))
    return [placed[i] for i in range(len(positions))]


def png(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

"""The look that all plots share: size, ink, a colour per tier, labels beside what they name."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
INK, MUTED, FAINT, GRID = "#1f2328", "#656d76", "#d0d7de", "#eaeef2"
WIDTH = 5.4
FINE_SCALE = 0.04
"""Length of an axis of shares up to which whole percents do not tell its marks apart."""
MARKERS = "os^DvPX*"
ON_LIGHT, ON_DARK = "#111111", "#fefefe"
"""Ink on a colour that is the same by day and by night."""
OF_PAGE = {INK: "--ink", MUTED: "--muted", FAINT: "--line", GRID: "--line", "#ffffff": "--paper"}
"""Variables of the style sheet that stand for these colours on a page."""

Colour = tuple[float, float, float]

VIRIDIS = ("#58c765", "#29af7f", "#1f958b", "#297a8e", "#355f8d", "#424086", "#481d6f")
"""Equal steps of matplotlib's viridis without its yellow end, which white paper swallows."""


def new_figure(title: str, height: float = 3.4) -> Figure:
    """Return a titled figure that pyplot does not know: safe in threads, and nothing to close."""
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
        axes.grid(axis=grid, color=GRID, linewidth=0.8)


def dress_rows(axes: Axes, names: Sequence[str], grid: Literal["", "x"] = "x") -> None:
    """Give axes the shared look, with a named row at each whole height, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    dress(axes, grid)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def percent_scale(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Mark an axis, whose values are shares of 1, in percent; small ones with decimals."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    low, high = axis.get_view_interval()
    span = high - low
    decimals = 0 if span > FINE_SCALE else 1 if span > FINE_SCALE / 10 else None
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=decimals))


def round_scale(axes: Axes) -> None:
    """Mark the horizontal axis at whole rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def write(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any
) -> None:
    """Write small text `offset` points away from a position in the plot's coordinates."""
    look = {"va": "center", "fontsize": 8.5, "color": INK, "annotation_clip": False} | style
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **look)


def legend(figure: Figure, num_columns: int, **style: Any) -> None:
    """Place a frameless legend below the plot."""
    look = {"fontsize": 8, "frameon": False, "labelcolor": INK} | style
    figure.legend(loc="outside lower left", ncols=num_columns, **look)


def shades(names: Sequence[str]) -> dict[str, Colour]:
    """Return a colour per name, from light to dark.

    For tiers by `top_k` that is: the more experts, the darker, also in grey and for the
    colour-blind.
    """
    stops = np.array([[int(stop[i : i + 2], 16) / 255 for i in (1, 3, 5)] for stop in VIRIDIS])
    places = np.linspace(0, 1, len(names)) if len(names) > 1 else [2 / 3]
    steps = np.linspace(0, 1, len(stops))
    red, green, blue = (np.interp(places, steps, channel).tolist() for channel in stops.T)
    return dict(zip(names, zip(red, green, blue, strict=True), strict=False))


def line_style(place: int, number: int) -> dict[str, Any]:
    """Return the look of one line of several: the first is widest and lies below, so that lines
    which coincide are all seen."""
    wider = min(number - 1 - place, 5)
    return {
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 5.5 + 2 * wider,
        "linewidth": 1.6 + 1.3 * wider,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def hex_colour(colour: Colour) -> str:
    """Return a colour as HTML writes it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def text_colour(colour: Colour) -> Colour:
    """Return a darker shade of a line's colour, in which small letters can be read."""
    red, green, blue = colour
    return (0.62 * red, 0.62 * green, 0.62 * blue)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return positions moved as little as needed to be `gap` apart, in the same order.

    >>> spread([1.0, 1.0, 9.0], gap=2.0)
    [0.0, 2.0, 9.0]
    """
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
    """Return the figure as a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Return the figure as SVG, its text as text; the same figure gives the same characters."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedmoe"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"'DejaVu Sans'[^;\"]*", "'DejaVu Sans', sans-serif", buffer.getvalue())


def on_page(text: str) -> str:
    """Return an SVG as a part of a page whose colours it takes, by day and by night.

    Ink and paper are the page's. Every other colour keeps its hue; on dark paper it is as light
    as `--least` of the style sheet asks.
    """
    text = text[text.index("<svg") :].replace("'DejaVu Sans'", "system-ui")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)
    # Groups of two plots would share their ids; marks and clips are named by what they hold.
    text = re.sub(r' id="[a-zA-Z]+(\.[a-z]+)?_\d+"', "", text)
    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _of_page, text)


def _of_page(found: re.Match[str]) -> str:
    """Return a declaration of a colour as it is on a page."""
    name, colour = found.groups()
    if colour in (ON_LIGHT, ON_DARK):
        return found[0]
    if colour in OF_PAGE:
        return f"{name}: var({OF_PAGE[colour]})"
    # Browsers that do not know relative colours keep the first one.
    return f"{found[0]}; {name}: oklch(from {colour} max(l, var(--least)) c h)"

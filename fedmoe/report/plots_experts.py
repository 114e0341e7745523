"""Heat maps of routing: which experts the tokens of all clients, and of each client, went to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.report.expert_load import relative_shares
from fedmoe.report.figures import INK, MUTED, ON_DARK, ON_LIGHT, dress, new_figure
from fedmoe.report.units import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

MOST_CLIENTS = 20
"""Clients beyond which there is one map per tier."""
MOST_LETTERS = 16
"""Of a client's name above its map."""
MOST_NUMBERS = 130
"""Cells up to which each one shows its number."""


def expert_load(run: Run) -> Figure | None:
    """Tokens routed to each expert in all local training, relative to an equal share."""
    if run.by_client is None:
        return None
    load = relative_shares(run.by_client.sum(0))
    title = "Tokens per expert; 1 is the uniform share"
    figure = new_figure(title, min(1.5 + 0.3 * len(load), 5.5))
    axes = figure.add_subplot()
    image = _draw_map(axes, load, _highest([load]))
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_xticks(_ticks(load.shape[1], 16))
    axes.set_yticks(_ticks(load.shape[0], 16))
    if load.size <= MOST_NUMBERS:
        _write_numbers(axes, load)
    dress(axes, grid="")
    axes.spines[:].set_visible(False)
    _colour_bar(figure, image, [axes])
    return figure


def client_expert_load(run: Run) -> Figure | None:
    """Tokens routed to each expert by each client, or by each tier in runs of many clients."""
    return load_maps(_client_maps(run), 4, row_inches=0.95)


def load_maps(
    maps: Sequence[tuple[str, np.ndarray]],
    num_columns: int,
    row_inches: float,
    title: str = "Tokens per expert (across) and layer (down); 1 is the uniform share",
    dots: Sequence[np.ndarray] = (),
) -> Figure | None:
    """Draw titled layer-by-expert maps side by side on one colour scale; None without maps.

    Cells that are true in a map's `dots` are marked.
    """
    if not maps:
        return None
    num_columns = min(num_columns, len(maps))
    num_rows = math.ceil(len(maps) / num_columns)
    figure = new_figure(title, 0.65 + row_inches * num_rows)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    highest, image = _highest([load for _, load in maps]), None
    for axes, (name, load) in zip(grid, maps, strict=False):
        image = _draw_map(axes, load, highest)
        axes.set_title(name, fontsize=8.5, color=INK, loc="left", pad=3)
    for axes, marked in zip(grid, dots, strict=False):
        layer, expert = marked.nonzero()
        axes.scatter(expert, layer, s=4, color=ON_LIGHT, edgecolors=ON_DARK, linewidths=0.4)
    for axes in grid[len(maps) :]:
        axes.set_visible(False)
    _colour_bar(figure, image, list(grid))
    return figure


def _client_maps(run: Run) -> list[tuple[str, np.ndarray]]:
    """Return the title and relative load of each client that trained, or of each tier."""
    if run.by_client is None:
        return []
    maps = []
    for tier in run.tiers:
        trained = [c for c in sorted(tier.clients) if run.by_client[c].sum()]
        if run.header["num_clients"] <= MOST_CLIENTS:
            maps += [
                (
                    f"{shortened(run.name_of(c), MOST_LETTERS)} · k={tier.top_k}",
                    relative_shares(run.by_client[c]),
                )
                for c in trained
            ]
        elif trained:
            title = f"{tier.name} k={tier.top_k} ({len(trained)})"
            maps.append((title, relative_shares(run.by_client[trained].sum(0))))
    return maps


def _highest(loads: Sequence[np.ndarray]) -> float:
    return max(2.0, *(float(np.nanmax(load)) for load in loads))


def _draw_map(axes: Axes, load: np.ndarray, highest: float) -> Any:
    """Draw a load: blue is less than uniform, red is more, grey was never measured."""
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    colours = colormaps["RdBu_r"].with_extremes(bad="#d0d7de")
    norm = TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=highest)
    return axes.imshow(load, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def _write_numbers(axes: Axes, load: np.ndarray) -> None:
    highest = _highest([load])
    for (layer, expert), value in np.ndenumerate(load):
        if np.isfinite(value):
            strong = abs(value - 1) > 0.6 * (1 if value < 1 else highest - 1)
            ink = ON_DARK if strong else ON_LIGHT
            axes.text(
                expert, layer, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=ink
            )


def _colour_bar(figure: Figure, image: Any, axes: list[Axes]) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, aspect=30)
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    highest = image.norm.vmax
    # A two-slope scale spaces its own ticks badly: write the three values that carry meaning.
    bar.set_ticks([0, 1, highest], labels=["0", "1", f"{highest:.1f}"])
    bar.ax.tick_params(labelsize=8.5, length=0, labelcolor=MUTED)


def _ticks(number: int, most: int) -> range:
    return range(0, number, math.ceil(number / most))

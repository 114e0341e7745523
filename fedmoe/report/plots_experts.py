"""Heat maps of routing: which experts the tokens of all clients, and of each client, went to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.report.figures import INK, MUTED, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.report.run import Run

MOST_CLIENTS = 20
"""Clients beyond which there is one map per tier."""
MOST_NUMBERS = 130
"""Cells up to which each one shows its number."""


def relative_load(counts: np.ndarray) -> np.ndarray:
    """Each expert's share of its layer's tokens, times the number of experts.

    1 is the uniform share, 0 an expert no token reached; a layer without tokens is NaN.
    """
    total = counts.sum(-1, keepdims=True).astype(float)
    total[total == 0] = np.nan
    return counts / total * counts.shape[-1]


def expert_load(run: Run) -> Figure | None:
    """Layer by expert, over all clients and rounds."""
    if run.by_client is None:
        return None
    load = relative_load(run.by_client.sum(0))
    num_layers, num_experts = load.shape
    figure = new_figure(
        "Tokens per expert; 1 is the uniform share", min(1.5 + 0.3 * num_layers, 5.5)
    )
    axes = figure.add_subplot()
    image = load_map(axes, load, highest=max(2.0, float(np.nanmax(load))))
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_xticks(_ticks(num_experts, 16))
    axes.set_yticks(_ticks(num_layers, 16))
    if load.size <= MOST_NUMBERS:
        _write_numbers(axes, load)
    dress(axes, grid="")
    axes.spines[:].set_visible(False)
    colour_bar(figure, image, [axes])
    return figure


def client_expert_load(run: Run) -> Figure | None:
    """One small layer-by-expert map per client, by tier; per tier where clients are many."""
    maps = _client_maps(run)
    if not maps:
        return None
    num_columns = min(4, len(maps))
    num_rows = math.ceil(len(maps) / num_columns)
    title = "Tokens per expert (across) and layer (down); 1 is the uniform share"
    figure = new_figure(title, 0.65 + 0.95 * num_rows)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    highest = max(2.0, max(float(np.nanmax(load)) for _, load in maps))
    image = None
    for axes, (title, load) in zip(grid, maps, strict=False):
        image = load_map(axes, load, highest)
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=3)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes in grid[len(maps) :]:
        axes.set_visible(False)
    colour_bar(figure, image, list(grid))
    return figure


def _client_maps(run: Run) -> list[tuple[str, np.ndarray]]:
    """Title and relative load of each client that trained, or of each tier."""
    if run.by_client is None:
        return []
    maps = []
    for tier in run.tiers:
        trained = [c for c in sorted(tier.clients) if run.by_client[c].sum()]
        if run.header["num_clients"] <= MOST_CLIENTS:
            maps += [(f"{c} · k={tier.top_k}", relative_load(run.by_client[c])) for c in trained]
        elif trained:
            title = f"{tier.name} k={tier.top_k} ({len(trained)})"
            maps.append((title, relative_load(run.by_client[trained].sum(0))))
    return maps


def load_map(axes: Axes, load: np.ndarray, highest: float) -> Any:
    """Draw a load: blue is less than uniform, red is more, grey was never measured."""
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    colours = colormaps["RdBu_r"].with_extremes(bad="#d0d7de")
    norm = TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=highest)
    return axes.imshow(load, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def _write_numbers(axes: Axes, load: np.ndarray) -> None:
    highest = max(2.0, float(np.nanmax(load)))
    for (layer, expert), value in np.ndenumerate(load):
        if np.isfinite(value):
            strong = abs(value - 1) > 0.6 * (1 if value < 1 else highest - 1)
            axes.text(
                expert,
                layer,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if strong else INK,
            )


def colour_bar(figure: Figure, image: Any, axes: list[Axes]) -> None:
    """The scale of a load map beside its axes."""
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, aspect=30)
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    highest = image.norm.vmax
    # A two-slope scale spaces its own ticks badly: say the three values that carry meaning.
    bar.set_ticks([0, 1, highest], labels=["0", "1", f"{highest:.1f}"])
    bar.ax.tick_params(labelsize=8.5, length=0, labelcolor=MUTED)


def _ticks(number: int, most: int) -> range:
    return range(0, number, math.ceil(number / most))

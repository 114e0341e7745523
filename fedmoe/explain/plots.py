"""The plots of an explained run; the sentence below a plot is its function's docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.report.figures import (
    FAINT,
    INK,
    MUTED,
    dress,
    legend,
    line_style,
    new_figure,
    percent_scale,
    round_scale,
    shades,
    svg,
)
from fedmoe.report.plots import Picture
from fedmoe.report.plots_experts import load_maps
from fedmoe.report.units import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedmoe.explain.explained import Explained

MOST_LIFT = 4.0
"""The lift that gets the deepest colour."""
MOST_MATRICES, MOST_OWNERS = 6, 24
LEAST_TOKENS = 20
"""Tokens of a bin of confidence, below which its accuracy is chance."""
LETTERS = 16


def draw(found: Explained) -> list[Picture]:
    """Return a picture of every plot that there is something to show in."""
    drawn: dict[str, tuple[Callable[..., Figure | None], tuple]] = {
        f"lift-{of.kind}": (lift_map, (found, place)) for place, of in enumerate(found.groups)
    }
    drawn |= {
        name: (function, (found,))
        for name, function in {
            "lift-recorded": recorded_map,
            "information": information,
            "redundancy": redundancy,
            "reliability": reliability,
            "moved": moved,
            "rounds": over_rounds,
        }.items()
    }
    pictures = []
    for name, (function, arguments) in drawn.items():
        if figure := function(*arguments):
            caption = (inspect.getdoc(function) or name).partition("\n")[0]
            pictures.append(Picture(name, caption, svg(figure)))
    return pictures


def lift_map(found: Explained, place: int) -> Figure | None:
    """Red: more of the group's tokens than the mean group gives the expert, up to 4; dots: sure."""
    of = found.groups[place]
    names = [shortened(name, LETTERS) for name in of.names]
    return _maps(f"Lift by {of.kind}", names, of.lift, of.marked)


def recorded_map(found: Explained) -> Figure | None:
    """Lift of owners' tokens in local training, over owners with the same k; without intervals."""
    of = found.recorded
    known = [] if of is None else np.flatnonzero(~np.isnan(of.lift).all((1, 2)))
    if of is None or not 0 < len(known) <= MOST_OWNERS:
        return None
    names = [f"{shortened(of.names[n], LETTERS - 5)} · k={of.top_k[n]}" for n in known]
    return _maps("Recorded lift by owner", names, of.lift[known])


def information(found: Explained) -> Figure | None:
    """Bits that the choice of an expert tells of a row's group; dashed: chance stays below."""
    if not found.groups:
        return None
    figure = new_figure("Mutual information of group and expert, in bits", 2.9)
    axes, colours = figure.add_subplot(), shades([of.kind for of in found.groups])
    for place, of in enumerate(found.groups):
        layers, style = range(len(of.information)), line_style(place, len(found.groups))
        axes.plot(layers, of.information, color=colours[of.kind], label=of.kind, **style)
        axes.plot(layers, of.shuffled_high, color=colours[of.kind], linestyle="--", linewidth=1.2)
    axes.set_ylim(bottom=0)
    _layers(axes, found.num_layers)
    dress(axes)
    legend(figure, 3)
    return figure


def redundancy(found: Explained) -> Figure | None:
    """Linear CKA of every two experts' answers to the same tokens; 1 is alike but for rotation."""
    if found.redundancy is None or found.num_experts < 2:
        return None
    of = found.redundancy.similarity
    places = np.unique(np.linspace(0, len(of) - 1, min(len(of), MOST_MATRICES)).astype(int))
    columns = 2 if len(places) == 4 else min(3, len(places))
    rows = -(-len(places) // columns)
    figure = new_figure("Similarity of experts, by layer", 0.5 + 4.4 / columns * rows)
    grid, image = figure.subplots(rows, columns, squeeze=False).ravel(), None
    for axes, layer in zip(grid, places, strict=False):
        image = axes.imshow(of[layer], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"layer {layer}", fontsize=8.5, color=INK, loc="left", pad=3)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes in grid[len(places) :]:
        axes.set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid), fraction=0.03, pad=0.015, aspect=30)
    bar.outline.set_visible(False)  # type: ignore[union-attr]
    bar.ax.tick_params(labelsize=8.5, length=0, labelcolor=MUTED)
    return figure


def reliability(found: Explained) -> Figure | None:
    """Share of likeliest tokens that are right, by probability; on the line it is calibrated."""
    if not found.calibration:
        return None
    figure = new_figure("Accuracy by confidence, over response tokens", 3.4)
    axes, colours = figure.add_subplot(), shades([of.tier for of in found.calibration])
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
    for place, of in enumerate(found.calibration):
        enough = of.tokens >= LEAST_TOKENS
        style = line_style(place, len(found.calibration))
        name = f"{shortened(of.tier, LETTERS)} k={of.top_k}"
        x, y = of.confidence[enough], of.accuracy[enough]
        axes.plot(x, y, color=colours[of.tier], label=name, **style)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    for which in ("x", "y"):
        percent_scale(axes, which)
    dress(axes)
    legend(figure, 4)
    return figure


def moved(found: Explained) -> Figure | None:
    """The same rows with the adapter and without: choices that differ, and how far loads moved."""
    if found.moved is None:
        return None
    figure = new_figure("Routing with the adapter against the base model's", 2.9)
    axes, lines = figure.add_subplot(), {"choices changed": found.moved.changed}
    lines["load moved (total variation)"] = found.moved.distance
    colours = shades([*lines])
    for place, (name, values) in enumerate(lines.items()):
        style = line_style(place, len(lines))
        axes.plot(range(len(values)), values, color=colours[name], label=name, **style)
    axes.set_ylim(bottom=0)
    percent_scale(axes)
    _layers(axes, found.num_layers)
    dress(axes)
    legend(figure, 2)
    return figure


def over_rounds(found: Explained) -> Figure | None:
    """Distance of each round's load of experts from the first one's: mean and range of layers."""
    if found.recorded is None or len(found.recorded.distance) < 2:
        return None
    of = found.recorded.distance
    figure = new_figure("Load moved since round 1, in local training", 2.9)
    axes, rounds = figure.add_subplot(), range(1, len(of) + 1)
    (colour,) = shades(["all"]).values()
    axes.fill_between(rounds, of.min(1), of.max(1), color=colour, alpha=0.25, linewidth=0)
    axes.plot(rounds, of.mean(1), color=colour, **line_style(0, 1))
    axes.set_ylim(bottom=0)
    percent_scale(axes)
    round_scale(axes)
    dress(axes)
    return figure


def _maps(
    title: str, names: list[str], lift: np.ndarray, marked: np.ndarray | None = None
) -> Figure | None:
    num_layers = lift.shape[1]
    return load_maps(
        [*zip(names, np.minimum(lift, MOST_LIFT), strict=True)],
        4,
        row_inches=min(0.45 + 0.12 * num_layers, 1.8),
        title=f"{title}: experts across, layers down; 1 is the mean",
        dots=() if marked is None else [*marked],
    )


def _layers(axes: Axes, number: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.set_xlim(-0.3, number - 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))

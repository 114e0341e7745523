"""How a layer's step grows: seconds and memory against tokens, k, rank and experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import torch

from simulations.bench.layer import OURS, Layer, Size, peak_bytes
from simulations.bench.measure import Options, Row, in_turns

STEEPEST = 1.05
"""Linear growth, and what a machine's noise adds to it."""


@dataclass(frozen=True)
class Point:
    """A layer and the work it is given."""

    tokens: int = 1024
    top_k: int = 2
    rank: int = 16
    experts: int = 32


VARIED = {
    "tokens": (256, 512, 1024, 2048, 4096),
    "top_k": (1, 2, 4, 8, 16),
    "rank": (4, 8, 16, 32, 64),
    "experts": (8, 16, 32, 64, 128),
}


@dataclass(frozen=True)
class Curve:
    """Medians of a step at each value of one size."""

    seconds: list[float]
    peak_bytes: list[int]


def rows(options: Options) -> Iterator[Row]:
    """For each size the exponent of growth: seconds and memory go as `size ** exponent`."""
    hidden = 64 if options.quick else 512
    curves = {}
    for name, values in VARIED.items():
        curves[name] = measured([replace(Point(), **{name: v}) for v in values], hidden, options)
        for what, curve in vars(curves[name]).items():
            exponent = float(np.polyfit(np.log(values), np.log(curve), 1)[0])
            yield Row(
                f"{what} of a layer step against {name}", f"{values[0]} to {values[-1]}",
                f"exponent {exponent:.2f}", "at most linear", exponent <= STEEPEST,
            )  # fmt: skip
    if options.plots:
        plot(curves, options.plots)


def measured(points: list[Point], hidden: int, options: Options) -> Curve:
    """Steps of all points in turns."""
    steps = []
    for point in points:
        with torch.random.fork_rng():
            layer = Layer(Size(hidden, point.experts, hidden // 2, point.rank))
        steps.append(layer.steps(point.tokens, point.top_k, [OURS])[OURS])
    seconds = in_turns({str(i): step for i, step in enumerate(steps)}, options.repeats)
    return Curve([median(s) for s in seconds.values()], [peak_bytes(step, "cpu") for step in steps])


def plot(curves: dict[str, Curve], folder: Path) -> None:
    """`scaling.png`: a panel for each size and figure, both axes logarithmic."""
    figure, panels = plt.subplots(2, len(curves), figsize=(3.2 * len(curves), 5.6), sharey="row")
    for column, (name, curve) in enumerate(curves.items()):
        values = np.array(VARIED[name])
        shown = {
            "milliseconds": [s * 1e3 for s in curve.seconds],
            "peak MiB": [b / 2**20 for b in curve.peak_bytes],
        }
        for row, (label, y) in enumerate(shown.items()):
            panel = panels[row][column]
            panel.loglog(values, y, "o-", label="measured")
            panel.loglog(values, y[0] * values / values[0], ":", color="gray", label="linear")
            panel.set_xticks(values, [str(v) for v in values])
            panel.minorticks_off()
            panel.set_xlabel(name)
            panel.grid(alpha=0.3)
            if not column:
                panel.set_ylabel(label)
    panels[0][0].legend(frameon=False)
    figure.suptitle("One sparse layer's training step")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=110)
    plt.close(figure)

"""How a layer's step grows with tokens, k, rank and experts, and a round with its clients."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import torch

from fedmoe.runs.local.in_process import InProcess
from simulations.benchmarks.layer import OURS, Layer, Size, peak_bytes
from simulations.benchmarks.measure import Options, Row, in_turns
from simulations.benchmarks.simulation import one_round, still_run, still_state

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


CLIENTS = (16, 64, 256, 1024)
AT_A_TIME = 16
"""Clients a round where their number in all grows."""


@dataclass(frozen=True)
class Curve:
    """What a step takes at each value of one size."""

    step: str
    """Of what: `layer step`, `round`."""
    values: tuple[int, ...]
    seconds: list[float]
    """Medians."""
    peak_bytes: list[int]


def rows(options: Options) -> Iterator[Row]:
    """For each size the exponent of growth: seconds and memory go as `size ** exponent`."""
    hidden = 64 if options.quick else 512
    curves: dict[str, Curve] = {}
    for name, curve in chain(layer_curves(hidden, options), client_curves(options)):
        curves[name] = curve
        for what in ("seconds", "peak_bytes"):
            exponent = float(np.polyfit(np.log(curve.values), np.log(getattr(curve, what)), 1)[0])
            yield Row(
                f"{what} of a {curve.step} against {name}",
                f"{curve.values[0]} to {curve.values[-1]}",
                f"exponent {exponent:.2f}",
                "at most linear",
                exponent <= STEEPEST,
            )
    if options.plots:
        plot(curves, options.plots)


def layer_curves(hidden: int, options: Options) -> Iterator[tuple[str, Curve]]:
    """One layer's training step against each of its sizes."""
    for name, values in VARIED.items():
        points = [replace(Point(), **{name: value}) for value in values]
        yield name, measured(values, points, hidden, options)


def measured(values: tuple[int, ...], points: list[Point], hidden: int, options: Options) -> Curve:
    """Steps of all points in turns."""
    steps = []
    for point in points:
        with torch.random.fork_rng():
            layer = Layer(Size(hidden, point.experts, hidden // 2, point.rank))
        steps.append(layer.steps(point.tokens, point.top_k, [OURS])[OURS])
    peaks = [peak_bytes(step, "cpu") for step in steps]
    return Curve("layer step", values, medians(steps, options), peaks)


def client_curves(options: Options) -> Iterator[tuple[str, Curve]]:
    """A round of clients that do nothing: all in the round, and a fixed number of them."""
    values = CLIENTS[:2] if options.quick else CLIENTS
    runs = [still_run(num_clients, width=2) for num_clients in values]
    for name, at_a_time in (("clients", None), (f"clients, {AT_A_TIME} a round", AT_A_TIME)):
        steps = [
            partial(one_round, run, still_state(run), InProcess(run), at_a_time) for run in runs
        ]
        yield name, Curve("round", values, medians(steps, options), list(map(array_bytes, steps)))


def medians(steps: Sequence[Callable[[], object]], options: Options) -> list[float]:
    """Seconds of each, taken in turns."""
    named = {str(i): step for i, step in enumerate(steps)}
    taken = in_turns(named, options.repeats, clock=options.clock)
    return [median(seconds) for seconds in taken.values()]


def array_bytes(step: Callable[[], object]) -> int:
    """The most bytes that numpy's arrays, among them all updates, and Python's objects hold."""
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def plot(curves: dict[str, Curve], folder: Path) -> None:
    """`scaling.png`: a panel for each size and figure, both axes logarithmic."""
    figure, panels = plt.subplots(2, len(curves), figsize=(3 * len(curves), 5.6))
    for column, (name, curve) in enumerate(curves.items()):
        values = np.array(curve.values)
        shown = {
            f"milliseconds of a {curve.step}": [s * 1e3 for s in curve.seconds],
            f"peak MiB of a {curve.step}": [b / 2**20 for b in curve.peak_bytes],
        }
        for row, (label, y) in enumerate(shown.items()):
            panel = panels[row][column]
            panel.loglog(values, y, "o-", label="measured")
            panel.loglog(values, y[0] * values / values[0], ":", color="gray", label="linear")
            panel.set_xticks(values, [f"{v:,}" for v in values])
            panel.minorticks_off()
            panel.set_xlabel(name)
            panel.grid(alpha=0.3)
            if not column or curve.step != "layer step":
                panel.set_ylabel(label)
    panels[0][0].legend(frameon=False)
    figure.suptitle("Training step of one sparse layer; round of clients that do nothing")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png", dpi=110)
    plt.close(figure)

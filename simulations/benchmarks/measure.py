"""Measurement of figures: variants in turns within one process, medians, ratios.

A busy machine slows all variants alike, so a ratio of neighbours in time can be trusted where a
time cannot. (`torch.utils.benchmark` repeats one statement at a time, and warms up before each.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """The command line's settings for every benchmark."""

    repeats: int = 5
    """Turns; a median of fewer than five says little."""
    threads: int = 1
    """Threads of torch."""
    quick: bool = False
    """Small sizes, to see that everything runs; such ratios decide nothing."""
    device: str = "cpu"
    """Where the layer is computed, as torch names it."""

    @property
    def clock(self) -> Callable[[], float]:
        """The processor time of this thread, of which other processes take none; wall time where
        other threads or a GPU compute for it."""
        alone = self.threads == 1 and self.device == "cpu"
        return time.thread_time if alone else time.perf_counter

    def turns(self, steps: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Return the seconds of every step, taken in turns."""
        return in_turns(steps, self.repeats, self.device, self.clock)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    """The comparison, e.g. `layer step, PEFT on eager experts`."""
    setting: str
    """Its size, e.g. `512 tokens, k = 1`."""
    figure: str
    """The ratio or amount, with its unit: `23.1x`, `0.21x`, `8.2 ms`."""
    wanted: str = ""
    """The bar, e.g. `at least 20x`; empty where there is none."""
    met: bool | None = None
    """True if the bar is met; None where there is none."""
    note: str = ""
    """The peer's version, or what limits the figure."""


def in_turns(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return `repeats` times of every step, one after another in each turn; a warm-up first."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            wait()
            started = clock()
            step()
            wait()
            seconds[name].append(clock() - started)
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """Return the median over turns of `of / to`."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def at_least(value: float, bar: float) -> dict[str, Any]:
    """Return the fields of a row whose ratio must not be lower than `bar`."""
    return {"figure": f"{value:.2f}x", "wanted": f"at least {bar:g}x", "met": value >= bar}


def at_most(value: float, bar: float) -> dict[str, Any]:
    """Return the fields of a row whose ratio must not be higher than `bar`."""
    return {"figure": f"{value:.2f}x", "wanted": f"at most {bar:g}x", "met": value <= bar}


def named(library: str) -> str:
    """Return a library's name with its version."""
    return f"{library} {version(library)}"

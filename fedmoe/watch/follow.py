"""`fedmoe status`: a folder as it stands, once, or again and again until its runs have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from fedmoe.errors import FedMoEError
from fedmoe.system.files import write_text
from fedmoe.system.json_text import json_text
from fedmoe.watch.live.place import Place, PlaceNow
from fedmoe.watch.live.state import RunNow
from fedmoe.watch.prometheus import render_metrics
from fedmoe.watch.terminal import one_line, show_place, show_run

SECONDS = 2.0
"""Between two looks."""


def show(
    place: Place, console: Console, *, json: bool = False, prometheus: Path | None = None
) -> None:
    """Show a folder once.

    Raises:
        FedMoEError: it cannot be read, or the metrics cannot be written.
    """
    now = _look(place, prometheus)
    if json:
        _line(console, json_text(_state(place, now)))
    else:
        console.print(_drawn(place, now))


def follow(
    place: Place,
    console: Console,
    *,
    json: bool = False,
    prometheus: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a folder until all its runs have ended: a view that is drawn again, or lines.

    With `json`, and where stdout is no terminal, there is a line for each change.
    """
    if console.is_terminal and not json:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                now = _look(place, prometheus)
                live.update(_drawn(place, now), refresh=True)
                if _ended(now):
                    return
                sleep(SECONDS)
    said: dict[str, RunNow] = {}
    while True:
        now = _look(place, prometheus)
        for run in now.runs:
            if isinstance(run, RunNow) and said.get(run.run) != run.timeless:
                said[run.run] = run.timeless
                _line(console, json_text(run.as_json()) if json else one_line(run))
        if _ended(now):
            return
        sleep(SECONDS)


def _look(place: Place, prometheus: Path | None) -> PlaceNow:
    now = place.look()
    if prometheus is not None:
        try:
            write_text(prometheus, render_metrics(now.runs))
        except OSError as error:
            raise FedMoEError(
                f"--prometheus {prometheus} cannot be written: {error.strerror}; its folder must "
                "exist, and a textfile collector reads names that end with .prom"
            ) from None
    return now


def _drawn(place: Place, now: PlaceNow) -> RenderableType:
    return show_run(place.one()) if place.is_run else show_place(now)


def _state(place: Place, now: PlaceNow) -> dict:
    return place.one().as_json() if place.is_run else now.as_json()


def _ended(now: PlaceNow) -> bool:
    return now.num_finished >= now.num_known


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

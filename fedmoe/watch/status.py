"""`fedmoe status`: the runs in a folder on a terminal, once, or until all of them have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fedmoe.errors import FedMoEError
from fedmoe.progress.view import print_line, titled
from fedmoe.report.units import DASH, percent_text
from fedmoe.system.files import write_text
from fedmoe.system.json_text import json_text
from fedmoe.watch import tables
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.prometheus import render_metrics
from fedmoe.watch.state import FolderState, RunState

SECONDS = 2.0
"""Between two readings."""
STYLES = {"finished": "bold green", "running": "bold cyan", "silent": "bold yellow"}
MOST_CLIENTS = 20
"""Clients of a round that are listed."""


def show(
    folder: WatchedFolder, console: Console, *, json: bool = False, prometheus: Path | None = None
) -> None:
    """Show a folder once.

    Args:
        json: show everything, as JSON.
        prometheus: a file that is replaced by metrics, too.

    Raises:
        FedMoEError: the folder cannot be read, or the metrics cannot be written.
    """
    now = _read(folder, prometheus)
    if json:
        print_line(console, json_text(folder.read_either().as_json()))
    else:
        console.print(_view(folder, now, console.width))


def follow(
    folder: WatchedFolder,
    console: Console,
    *,
    json: bool = False,
    prometheus: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a folder until all its runs have ended: a view that is redrawn, or lines.

    With `json`, and where stdout is no terminal, there is a line for each change. See `show`.
    """
    drawn = console.is_terminal and not json
    shown: dict[str, RunState] = {}
    with Live(console=console, auto_refresh=False) if drawn else nullcontext() as live:
        while True:
            now = _read(folder, prometheus)
            if live:
                live.update(_view(folder, now, console.width), refresh=True)
            for run in () if live else now.runs:
                if isinstance(run, RunState) and shown.get(run.run) != run.without_clock:
                    shown[run.run] = run.without_clock
                    print_line(console, json_text(run.as_json()) if json else one_line(run))
            if now.num_finished >= now.num_known:
                return
            sleep(SECONDS)


def one_line(now: RunState) -> str:
    """Return a run in one line, for a log."""
    newest = {
        tier.name: percent_text(score.score)
        for tier in now.tiers
        if (score := tier.newest("test") or tier.newest("validation") or tier.base)
    }
    scores = ", ".join(f"{tier} {score}" for tier, score in newest.items() if score != DASH)
    return f"{now.run}: round {now.num_finished}/{now.num_rounds}, {now.status_line}; {scores}"


def _read(folder: WatchedFolder, prometheus: Path | None) -> FolderState:
    now = folder.read()
    if prometheus is not None:
        try:
            write_text(prometheus, render_metrics(now.runs))
        except OSError as error:
            raise FedMoEError(
                f"--prometheus {prometheus} cannot be written: {error.strerror}; its folder must "
                "exist, and a textfile collector reads names that end with .prom"
            ) from None
    return now


def _view(folder: WatchedFolder, now: FolderState, width: int) -> RenderableType:
    if folder.is_run:
        return _run_view(folder.read_run(), width)
    head = Text.assemble((now.title, "bold"), f"  {now.status_line}")
    return Group(head, *titled(tables.runs(now), width))


def _run_view(now: RunState, width: int) -> RenderableType:
    phase, round = (now.phase, STYLES[now.phase]), f"  round {now.round} of {now.num_rounds}"
    parts: list[RenderableType] = [
        Text.assemble((now.name, "bold"), "  ", phase, round),
        Text(now.status_line),
        Text("; ".join(f"{name}: {value}" for name, value in now.facts), "dim"),
    ]
    for table in (tables.scores(now), tables.clients(now, MOST_CLIENTS), tables.failures(now)):
        parts += titled(table, width)
    if now.advice:
        parts += [Text(), Text(now.advice, "yellow")]
    return Group(*parts)

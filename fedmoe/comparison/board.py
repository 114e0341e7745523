"""The live table of a comparison: finished and running variants, scores so far, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from fedmoe.comparison.files import render_markdown
from fedmoe.comparison.headline import headlines
from fedmoe.comparison.outcomes import results
from fedmoe.comparison.plan import PlannedRun
from fedmoe.comparison.study import Study, spread
from fedmoe.messages.records import Task
from fedmoe.progress.table import LiveTable, replaced_line
from fedmoe.progress.view import LiveView, fitted, titled
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import number_text, seconds_text
from fedmoe.rounds import ServerState
from fedmoe.runs.display import Display
from fedmoe.system.workforce import Replaced

STYLES = {"running": "cyan", "done": "green", "waiting": "dim"}


@dataclass(frozen=True)
class ComparisonProgress:
    """The state of a whole comparison; like `progress.table.Progress`, it never changes."""

    runs: Sequence[PlannedRun]
    clock: Callable[[], float]
    losses: Mapping[int, float] = field(default_factory=dict)
    """Losses of finished runs, by their place in `runs`."""
    current: int | None = None
    """The place of the current run."""
    round: int = 0
    """Its last finished round."""
    started: float = 0.0
    """When it began."""
    phase: str = "starting"
    seconds: float = 0.0
    """Totals of all finished runs."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the pace of the finished runs' rounds; None before the first."""
        if not (timed := self._rounds(self.losses)):
            return None
        pace = self.seconds / timed
        waiting = {*range(len(self.runs))} - {*self.losses, self.current}
        left = pace * self._rounds(waiting)
        if self.current is not None:
            left += max(0.0, pace * self._rounds([self.current]) - self.elapsed)
        return left

    @property
    def elapsed(self) -> float:
        """Seconds since the current run began."""
        return self.clock() - self.started

    def _rounds(self, places: Iterable[int]) -> int:
        return sum(self.runs[place].experiment.rounds for place in places)


class Board(LiveView):
    """Shows a comparison: one table where stdout is a terminal, else plain lines."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        quiet: bool,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress, self.quiet = ComparisonProgress(runs, clock), quiet
        super().__init__(console, drawn=not quiet)

    def begins(self, run: PlannedRun) -> Display:
        """Record that a run begins, and return the display of its rounds."""
        p = self.progress
        place = p.runs.index(run)
        p = self._now(current=place, round=0, phase="loading", started=p.clock())
        self._unless_drawn(f"{len(p.losses) + 1} of {len(p.runs)}: {_name(run)}{_left(p)}")
        if self.live:
            return RunOnBoard(self)
        return LiveTable(
            num_rounds=run.experiment.rounds,
            workers=run.experiment.simulation.workers,
            quiet=self.quiet,
            console=self.console,
        )

    def ended(self, run: PlannedRun, loss: float, seconds: float, *, before: bool) -> None:
        """Record a finished run; `before` if it had ended before this comparison."""
        p = self.progress
        losses = {**p.losses, p.runs.index(run): loss}
        p = self._now(current=None, phase="reporting", losses=losses, seconds=p.seconds + seconds)
        event = "had ended before" if before else f"took {seconds_text(seconds)}"
        number = f"{len(p.losses)} of {len(p.runs)}: " if before else ""
        self._unless_drawn(f"{number}{_name(run)} {event}, loss {number_text(loss)}")

    def _now(self, **changes: Any) -> ComparisonProgress:
        self.progress = replace(self.progress, **changes)
        return self.progress

    def _unless_drawn(self, text: str) -> None:
        if not self.live:
            self._line(text)

    def _render(self) -> Group:
        p = self.progress
        head = Text.assemble((f"{len(p.losses)} of {len(p.runs)} runs", "bold"), f"  {p.phase}")
        if p.current is not None:
            run = p.runs[p.current]
            rounds = f"round {p.round}/{run.experiment.rounds}"
            head.append(f"  {_name(run)}: {rounds}, {seconds_text(p.elapsed)}")
        head.append(_left(p))
        table = _table(p, max(4, self.console.height - 6))
        return Group(head, Text(), *fitted(table, self.console.width, STYLES))


class RunOnBoard(LiveTable):
    """The display of one run whose progress the board shows: lines for failures alone."""

    def __init__(self, board: Board) -> None:
        super().__init__(num_rounds=0, quiet=True, console=board.console)
        self.board = board

    def planned(self, tasks: Sequence[Task]) -> None:
        super().planned(tasks)
        self.board._now(phase="training")

    def finished(self, state: ServerState) -> None:
        super().finished(state)
        self.board._now(round=state.round, phase="evaluating")

    def replaced(self, event: Replaced) -> None:
        self._line(replaced_line(event))


def _table(p: ComparisonProgress, most: int) -> TextTable:
    """Return a row per case and variant; of many, those around the one that runs."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, run in enumerate(p.runs):
        places.setdefault((run.case, run.variant), []).append(place)
    cases = len({case for case, _ in places}) > 1
    columns, rows = ["case"] * cases + ["variant", "state", "runs", "loss"], []
    running = next((i for i, own in enumerate(places.values()) if p.current in own), 0)
    first = max(0, min(running - most // 2, len(places) - most))
    for key in [*places][first : first + most]:
        own = places[key]
        losses = [p.losses[place] for place in own if place in p.losses]
        done = len(losses) == len(own)
        state = "running" if p.current in own else "done" if done else "waiting"
        number, mean = f"{len(losses)}/{len(own)}", spread(losses, number_text)
        rows.append([*(key if cases else key[1:]), state, number, mean])
    return TextTable("", columns, rows, num_words=len(columns) - 2)


def _name(run: PlannedRun) -> str:
    detail = " ".join(run.settings) if run.case == "search" else f"seed {run.experiment.seed}"
    return ", ".join(part for part in (run.case, run.variant, detail) if part)


def _left(p: ComparisonProgress) -> str:
    return f", about {seconds_text(p.seconds_left)} left" if p.seconds_left else ""


def show_scores(study: Study, console: Console) -> None:
    """Print the scores of every case: as a terminal can show them, else as Markdown."""
    if not console.is_terminal:
        console.print(render_markdown(study, short=True), markup=False, soft_wrap=True)
        return
    for said in headlines(study):
        console.print(said, markup=False, highlight=False)
    for case in study.cases:
        table = results(case)
        for part in titled(replace(table, title=case.name or table.title), console.width):
            console.print(part)
    console.print()

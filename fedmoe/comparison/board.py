"""The live table of a comparison: finished and running variants, scores so far, time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fedmoe.comparison.plan import PlannedRun
from fedmoe.comparison.study import spread
from fedmoe.comparison.tables import points
from fedmoe.messages.codec import Task
from fedmoe.progress.table import LiveTable
from fedmoe.progress.view import LiveView, plain_table
from fedmoe.report.units import percent_text, seconds_text
from fedmoe.rounds import ServerState
from fedmoe.runs.display import Display
from fedmoe.runs.workers import Replaced

Key = tuple[str, str]
"""Case and variant."""
STYLES = {"running": "cyan", "done": "green", "waiting": "dim"}


@dataclass(frozen=True)
class VariantProgress:
    """The runs and scores so far of a variant in a case."""

    num_runs: int = 0
    scores: tuple[float, ...] = ()
    """Of finished runs."""


@dataclass(frozen=True)
class ComparisonProgress:
    """The state of a whole comparison; like `progress.table.Progress`, it never changes."""

    variants: Mapping[Key, VariantProgress]
    rounds_left: int
    """In runs that have not begun."""
    clock: Callable[[], float]
    current: PlannedRun | None = None
    round: int = 0
    """Last finished round of the current run."""
    phase: str = "starting"
    started: float = 0.0
    """Start of the current run."""
    timed_seconds: float = 0.0
    timed_rounds: int = 0
    """Rounds of finished runs, whose time is known."""

    @property
    def num_done(self) -> int:
        return sum(len(variant.scores) for variant in self.variants.values())

    @property
    def num_runs(self) -> int:
        return sum(variant.num_runs for variant in self.variants.values())

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the pace of the finished runs' rounds; None before the first."""
        if not self.timed_rounds:
            return None
        pace = self.timed_seconds / self.timed_rounds
        left = pace * self.rounds_left
        if self.current:
            left += max(0.0, pace * self.current.experiment.rounds - self.elapsed)
        return left

    @property
    def elapsed(self) -> float:
        """Seconds since the current run began."""
        return self.clock() - self.started


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
        counts = Counter((run.case, run.variant) for run in runs)
        variants = {key: VariantProgress(count) for key, count in counts.items()}
        total = sum(run.experiment.rounds for run in runs)
        self.progress, self.quiet = ComparisonProgress(variants, total, clock), quiet
        super().__init__(console, drawn=not quiet)

    def begins(self, run: PlannedRun) -> Display:
        """Record that a run begins, and return the display of its rounds."""
        p = self._now(
            current=run,
            round=0,
            phase="loading",
            started=self.progress.clock(),
            rounds_left=self.progress.rounds_left - run.experiment.rounds,
        )
        self._unless_drawn(f"{p.num_done + 1} of {p.num_runs}: {_name(run)}{_left(p)}")
        if self.live:
            return RunOnBoard(self)
        return LiveTable(
            num_rounds=run.experiment.rounds,
            workers=run.experiment.simulation.workers,
            quiet=self.quiet,
            console=self.console,
        )

    def ended(self, run: PlannedRun, score: float, seconds: float, *, before: bool) -> None:
        """Record a finished run; `before` if it had ended before this comparison."""
        p, key, rounds = self.progress, (run.case, run.variant), run.experiment.rounds
        variant = replace(p.variants[key], scores=(*p.variants[key].scores, score))
        p = self._now(
            current=None,
            phase="reporting",
            variants={**p.variants, key: variant},
            rounds_left=p.rounds_left - (rounds if before else 0),
            timed_seconds=p.timed_seconds + seconds,
            timed_rounds=p.timed_rounds + rounds,
        )
        event = "had ended before" if before else f"took {seconds_text(seconds)}"
        number = f"{p.num_done} of {p.num_runs}: " if before else ""
        self._unless_drawn(f"{number}{_name(run)} {event}, mean of tiers {percent_text(score)}")

    def _now(self, **changes: Any) -> ComparisonProgress:
        self.progress = replace(self.progress, **changes)
        return self.progress

    def _unless_drawn(self, text: str) -> None:
        if not self.live:
            self._line(text)

    def _render(self) -> Group:
        p = self.progress
        head = Text.assemble((f"{p.num_done} of {p.num_runs} runs", "bold"), f"  {p.phase}")
        if p.current:
            total = p.current.experiment.rounds
            head.append(f"  {_name(p.current)}: round {p.round}/{total}, {seconds_text(p.elapsed)}")
        head.append(_left(p))
        return Group(head, Text(), _table(p, max(4, self.console.height - 6)))


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
        self._line(f"{event.job} ended its worker ({event.ended_by}) and is repeated by another")


def _table(p: ComparisonProgress, most: int) -> Table:
    """Return a row per case and variant; of many, those around the one that runs."""
    cases = len({case for case, _ in p.variants}) > 1
    columns = ["case"] * cases + ["variant", "runs", "state", "mean of tiers, %"]
    table = plain_table(*columns, words=("case", "variant", "state"))
    keys = [*p.variants]
    running = (p.current.case, p.current.variant) if p.current else None
    place = keys.index(running) if running else 0
    first = max(0, min(place - most // 2, len(keys) - most))
    for key in keys[first : first + most]:
        variant = p.variants[key]
        done = len(variant.scores) == variant.num_runs
        state = "running" if key == running else "done" if done else "waiting"
        table.add_row(
            *([Text(key[0])] if cases else []),
            Text(key[1]),
            f"{len(variant.scores)}/{variant.num_runs}",
            Text(state, STYLES[state]),
            spread(variant.scores, points),
        )
    return table


def _name(run: PlannedRun) -> str:
    detail = " ".join(run.settings) if run.case == "search" else f"seed {run.experiment.seed}"
    return ", ".join(part for part in (run.case, run.variant, detail) if part)


def _left(p: ComparisonProgress) -> str:
    return f", about {seconds_text(p.seconds_left)} left" if p.seconds_left else ""

"""The live table of a comparison: what is done, what runs, the scores so far, the time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedmoe.comparison.plan import Planned
from fedmoe.comparison.report.study import spread
from fedmoe.comparison.report.tables import points
from fedmoe.messages.codec import Failure, Task, Update
from fedmoe.progress.table import LiveTable
from fedmoe.report.units import percent_text, seconds_text
from fedmoe.rounds import ServerState
from fedmoe.runs.display import Display
from fedmoe.runs.workers import Replaced

Key = tuple[str, str]
"""Case and variant."""


@dataclass(frozen=True)
class Row:
    """What is known of a variant in a case."""

    num_runs: int = 0
    scores: tuple[float, ...] = ()
    """Of runs that are done."""


@dataclass(frozen=True)
class Standing:
    """What is known of a whole comparison, for whoever draws it; as `live.Progress`."""

    rows: Mapping[Key, Row]
    rounds_left: int
    """In runs that have not begun."""
    clock: Callable[[], float]
    current: Planned | None = None
    round: int = 0
    """Finished in the current run."""
    phase: str = "starting"
    started: float = 0.0
    """When the current run began."""
    timed_seconds: float = 0.0
    timed_rounds: int = 0
    """Of runs whose time is known."""

    @property
    def num_done(self) -> int:
        return sum(len(row.scores) for row in self.rows.values())

    @property
    def num_runs(self) -> int:
        return sum(row.num_runs for row in self.rows.values())

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the runs that ended, by rounds; None before the first."""
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


class Board:
    """Shows a comparison: one table where stdout is a terminal, else plain lines."""

    def __init__(
        self,
        runs: Sequence[Planned],
        *,
        quiet: bool,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        counts = Counter((run.case, run.variant) for run in runs)
        rows = {key: Row(count) for key, count in counts.items()}
        total = sum(run.experiment.rounds for run in runs)
        self.standing = Standing(rows, total, clock)
        self.console, self.quiet = console, quiet
        self.live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2)
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.now(phase="interrupted" if error else "finished")
            self.live.stop()

    def begins(self, run: Planned) -> Display:
        """Take note that a run begins; what shows it while it runs."""
        s = self.now(
            current=run,
            round=0,
            phase="loading",
            started=self.standing.clock(),
            rounds_left=self.standing.rounds_left - run.experiment.rounds,
        )
        self._say(f"{s.num_done + 1} of {s.num_runs}: {_name(run)}{_left(s)}")
        if self.live:
            return Watcher(self)
        workers = run.experiment.simulation.workers
        return LiveTable(
            num_rounds=run.experiment.rounds,
            workers=workers,
            quiet=self.quiet,
            console=self.console,
        )

    def ended(self, run: Planned, score: float, seconds: float, *, before: bool) -> None:
        """Take note of a finished run; `before` if it had ended before this comparison."""
        s, key, rounds = self.standing, (run.case, run.variant), run.experiment.rounds
        row = replace(s.rows[key], scores=(*s.rows[key].scores, score))
        s = self.now(
            current=None,
            phase="reporting",
            rows={**s.rows, key: row},
            rounds_left=s.rounds_left - (rounds if before else 0),
            timed_seconds=s.timed_seconds + seconds,
            timed_rounds=s.timed_rounds + rounds,
        )
        said = "had ended before" if before else f"took {seconds_text(seconds)}"
        number = f"{s.num_done} of {s.num_runs}: " if before else ""
        self._say(f"{number}{_name(run)} {said}, mean of tiers {percent_text(score)}")

    def now(self, **changes: Any) -> Standing:
        """Take note of what has changed; how everything stands now."""
        self.standing = replace(self.standing, **changes)
        return self.standing

    def tell(self, text: str) -> None:
        """A line that stays above the table."""
        self.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _say(self, text: str) -> None:
        if not self.live:
            self.tell(text)

    def _render(self) -> Group:
        s = self.standing
        head = Text.assemble((f"{s.num_done} of {s.num_runs} runs", "bold"), f"  {s.phase}")
        if s.current:
            total = s.current.experiment.rounds
            head.append(f"  {_name(s.current)}: round {s.round}/{total}, {seconds_text(s.elapsed)}")
        head.append(_left(s))
        return Group(head, Text(), _table(s, max(4, self.console.height - 6)))


class Watcher(Display):
    """The display of one run whose progress the board shows."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def planned(self, tasks: Sequence[Task]) -> None:
        self.board.now(phase="training")

    def answered(self, task: Task, answer: Update | Failure) -> None:
        if isinstance(answer, Failure):
            self.board.tell(f"round {task.round}: client {task.client} failed: {answer.reason}")

    def finished(self, state: ServerState) -> None:
        self.board.now(round=state.round, phase="evaluating")

    def replaced(self, event: Replaced) -> None:
        self.board.tell(f"{event.job} ended its worker ({event.ended_by}); another does it again")


def _table(s: Standing, most: int) -> Table:
    """A row a case and variant; of many, those around the one that runs."""
    cases = len({case for case, _ in s.rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ["case"] * cases + ["variant", "runs", "state", "mean of tiers, %"]:
        numeric = name.startswith(("runs", "mean"))
        table.add_column(name, justify="right" if numeric else "left")
    keys = [*s.rows]
    running = (s.current.case, s.current.variant) if s.current else None
    place = keys.index(running) if running else 0
    first = max(0, min(place - most // 2, len(keys) - most))
    for key in keys[first : first + most]:
        row = s.rows[key]
        done = len(row.scores) == row.num_runs
        state = "running" if key == running else "done" if done else "waiting"
        style = {"running": "cyan", "done": "green", "waiting": "dim"}[state]
        table.add_row(
            *([Text(key[0])] if cases else []),
            Text(key[1]),
            f"{len(row.scores)}/{row.num_runs}",
            Text(state, style),
            spread(row.scores, points),
        )
    return table


def _name(run: Planned) -> str:
    what = " ".join(run.settings) if run.case == "search" else f"seed {run.experiment.seed}"
    return ", ".join(part for part in (run.case, run.variant, what) if part)


def _left(s: Standing) -> str:
    return f", about {seconds_text(s.seconds_left)} left" if s.seconds_left else ""

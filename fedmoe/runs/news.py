"""What happens to clients with rows of their own, as sentences for a terminal or a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedmoe.messages.rows import RowCounts, warnings_of
from fedmoe.report.units import listed, number_text, percent_text

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import ClientScore, Evaluation
    from fedmoe.messages.records import Failure, Task
    from fedmoe.runs.roster import Attendance


class News:
    """Says what is new, and nothing twice."""

    def __init__(self) -> None:
        self.away: dict[int, str] | None = None
        """Clients that were absent from the last round, by number; None before the first."""
        self.accounts: set[int] = set()
        """Clients whose accounts have been looked at."""
        self.summed = False
        self.withholding: set[int] = set()

    def met(self, attendance: Attendance) -> str:
        """Return who came and who went; empty if nobody did."""
        before, a = self.away, attendance
        self.away = {m.client: m.name for m in a.absent}
        joined, left = ([m.name for m in found] for found in (a.joined, a.left))
        new = [name for c, name in self.away.items() if c not in (before or {})]
        gone = {m.client for m in (*a.joined, *a.left)}
        back = [n for c, n in (before or {}).items() if c not in self.away and c not in gone]
        parts = [f"{a.there} client{'s are' if a.there != 1 else ' is'} there"]
        found = ((joined, "joined"), (back, "back"), (new, "absent"), (left, "gone for good"))
        for names, what in found[before is None :]:
            parts += [f"{what}: {listed(names)}"] if names else []
        return f"round {a.round}: {'; '.join(parts)}" if before is None or len(parts) > 1 else ""

    def summed_up(self, rows: Mapping[int, tuple[str, RowCounts]]) -> str:
        """Return the sum over the first clients that are asked; empty after that."""
        if self.summed or not rows:
            return ""
        self.summed = True
        total = RowCounts.total(counts for _, counts in rows.values())
        return f"rows of {len(rows)} client{'s' * (len(rows) != 1)}: {total}"

    def losses(self, rows: Mapping[int, tuple[str, RowCounts]]) -> list[str]:
        """Return a sentence for each client, not looked at before, that loses much."""
        new = {name: counts for c, (name, counts) in rows.items() if c not in self.accounts}
        self.accounts |= {*rows}
        return warnings_of(new)

    def withheld(self, tasks: Sequence[Task]) -> str:
        """Return who withholds scores; empty if that has been said."""
        new = [task for task in tasks if task.client not in self.withholding]
        self.withholding |= {task.client for task in tasks}
        names = listed([task.name for task in tasks])
        return f"{len(tasks)} client(s) withhold their scores: {names}" if new else ""


def who_of(client: int, tasks: Sequence[Task]) -> str:
    """Return a client in words, by its name if one of the tasks has it."""
    return next((task.who for task in tasks if task.client == client), f"client {client}")


def unscored_line(task: Task, failure: Failure, split: str) -> str:
    """Return that a client gave no scores, and why."""
    why = " ".join(failure.reason.split())
    return f"round {task.round - 1}: {task.who} gave no {split} scores: {why}"


def lowest(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ClientScore] | None:
    """Return the client with the lowest score, of equal ones the highest loss; None of only one."""
    found = [(e, client) for e in evaluations for client in e.clients]
    if len({client.client for _, client in found}) < 2:
        return None
    # Without a score, which is NaN, the loss alone counts.
    return min(found, key=lambda pair: (_number(pair[1].score), -pair[1].loss))


def _number(score: float) -> float:
    return 0.0 if math.isnan(score) else score


def lowest_text(evaluations: Sequence[Evaluation]) -> str:
    """Return that client in words; empty if there are not several."""
    if not (found := lowest(evaluations)):
        return ""
    client = found[1]
    score = "" if math.isnan(client.score) else f"{percent_text(client.score)} "
    return f"lowest client {client.name} {score}loss {number_text(client.loss)}"

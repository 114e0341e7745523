"""The display of a run as lines of Flower's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from typing import TYPE_CHECKING

from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.messages.rows import RowCounts
from fedmoe.report.fields import live_line
from fedmoe.report.units import percent_text
from fedmoe.runs.display import Display
from fedmoe.runs.news import News, lowest_text, unscored_line, who_of
from fedmoe.runs.roster import Attendance
from fedmoe.runs.workers import Injected
from server.private import log

if TYPE_CHECKING:
    from fedmoe.aggregation.robust.judgement import Judgement


class LogLines(Display):
    """Shows a run as lines of Flower's log."""

    def __init__(self, places: Mapping[int, str]) -> None:
        """Show a run; `places` has for each client the node that its task went to last."""
        self.places, self.news = places, News()
        self.tasks: Sequence[Task] = ()

    def planned(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        if not tasks:
            log(WARNING, "no client is reachable in this round")
            return
        first, last = min(task.round for task in tasks), max(task.round for task in tasks)
        # In an asynchronous run they started in several.
        since = f"round {first}" if first == last else f"rounds {first} to {last}"
        log(INFO, "%s: %d clients", since, len(tasks))

    def answered(self, task: Task, answer: Update | Failure) -> None:
        who = f"round {task.round}: {task.who} ({task.tier}, k={task.top_k})"
        if place := self.places.get(task.client):
            who += f" on {place}"
        if isinstance(answer, Failure):
            log(WARNING, "%s failed: %s", who, answer.reason)
            return
        told = "its numbers are withheld" if answer.withheld else live_line(answer.reported())
        log(INFO, "%s: %s", who, told)
        if answer.rows:
            self._warn(*self.news.losses({task.client: (task.name, answer.rows)}))

    def judged(self, number: int, judgement: Judgement) -> None:
        for verdict in judgement.clients:
            if verdict.refused == verdict.trained:
                who, rule = who_of(verdict.client, self.tasks), judgement.rule
                log(INFO, "round %d: %s is left out by the rule %r", number, who, rule)

    def injected(self, event: Injected) -> None:
        who = f"round {event.round}: {who_of(event.client, self.tasks)}"
        log(WARNING, "%s: %s injected, %s", who, event.fault, event.outcome)

    def noted(self, notes: Sequence[str]) -> None:
        for note in notes:
            log(INFO, "%s", note)

    def met(self, attendance: Attendance) -> None:
        if text := self.news.met(attendance):
            log(INFO, "%s", text)

    def unscored(self, task: Task, failure: Failure, split: str) -> None:
        self._warn(unscored_line(task, failure, split))

    def withheld(self, tasks: Sequence[Task], split: str) -> None:
        if text := self.news.withheld(tasks):
            log(INFO, "%s", text)

    def accounted(self, rows: Mapping[int, tuple[str, RowCounts]]) -> None:
        if text := self.news.summed_up(rows):
            log(INFO, "%s", text)
        self._warn(*self.news.losses(rows))

    def _warn(self, *sentences: str) -> None:
        for text in sentences:
            log(WARNING, "%s", text)

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        for e in evaluations:
            log(
                INFO,
                "round %d: %s %s (k=%d): loss %.3f, %s %s",
                e.round,
                e.split,
                e.tier,
                e.top_k,
                e.loss,
                e.metric,
                percent_text(e.score),
            )
        for split in dict.fromkeys(e.split for e in evaluations):
            found = [e for e in evaluations if e.split == split]
            if text := lowest_text(found):
                log(INFO, "round %d: %s %s", found[0].round, split, text)

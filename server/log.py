"""The display of a run as lines of Flower's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import INFO, WARNING

from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.report.fields import live_line
from fedmoe.runs.display import Display
from fedmoe.runs.workers import Injected
from server.private import log


class LogLines(Display):
    """Shows a run as lines of Flower's log."""

    def __init__(self, places: Mapping[int, str]) -> None:
        """Show a run; `places` has for each client the node that its task went to last."""
        self.places = places

    def planned(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            log(WARNING, "no client is reachable in this round")
            return
        first, last = min(task.round for task in tasks), max(task.round for task in tasks)
        # In an asynchronous run they started in several.
        since = f"round {first}" if first == last else f"rounds {first} to {last}"
        log(INFO, "%s: %d clients", since, len(tasks))

    def answered(self, task: Task, answer: Update | Failure) -> None:
        who = f"round {task.round}: client {task.client} ({task.tier}, k={task.top_k})"
        if place := self.places.get(task.client):
            who += f" on {place}"
        if isinstance(answer, Failure):
            log(WARNING, "%s failed: %s", who, answer.reason)
            return
        log(INFO, "%s: %s", who, live_line(answer.reported()))

    def injected(self, event: Injected) -> None:
        who = f"round {event.round}: client {event.client}"
        log(WARNING, "%s: %s injected, %s", who, event.fault, event.outcome)

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        for e in evaluations:
            log(
                INFO,
                "round %d: %s %s (k=%d): loss %.3f, score %.1f%%",
                e.round,
                e.split,
                e.tier,
                e.top_k,
                e.loss,
                100 * e.score,
            )

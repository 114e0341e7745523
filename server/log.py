"""A run as lines of Flower's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from types import TracebackType
from typing import Self

from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.codec import Failure, Task, Update
from fedmoe.rounds import ServerState
from fedmoe.runs.workers import Injected, Replaced, Schedule
from server.private import log


class LogLines:
    """Shows a run as an observer of its rounds; see `session.Display`."""

    def __init__(self, places: Mapping[int, str]) -> None:
        """`places` says by client which node its task went to last."""
        self.places = places

    def planned(self, tasks: Sequence[Task]) -> None:
        if tasks:
            log(INFO, "round %d: %d clients", tasks[0].round, len(tasks))
        else:
            log(WARNING, "no client is reachable in this round")

    def answered(self, task: Task, answer: Update | Failure) -> None:
        who = f"round {task.round}: client {task.client} ({task.tier}, k={task.top_k})"
        if place := self.places.get(task.client):
            who += f" on {place}"
        if isinstance(answer, Failure):
            log(WARNING, "%s failed: %s", who, answer.reason)
            return
        log(
            INFO,
            "%s: %d tokens, loss %.3f -> %.3f, %.1f s",
            who,
            answer.tokens,
            answer.loss_before,
            answer.loss_after,
            answer.seconds,
        )

    def finished(self, state: ServerState) -> None: ...
    def scheduled(self, schedule: Schedule) -> None: ...
    def replaced(self, event: Replaced) -> None: ...

    def injected(self, event: Injected) -> None:
        who = f"round {event.round}: client {event.client}"
        log(WARNING, "%s: %s on purpose: %s", who, event.fault, event.outcome)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

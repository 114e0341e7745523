"""The state of a run as the live table shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.records import Failure, Task
from fedmoe.report.units import seconds_text

if TYPE_CHECKING:
    from fedmoe.training.steps import Steps

COMBINING = "combining"
Done = Mapping[str, float]
"""The numbers that a client reported, by name; its update is as large as the adapter, so not it."""


@dataclass(frozen=True)
class Progress:
    """The state of a run so far; it never changes, as rich draws it on a separate thread."""

    num_rounds: int
    workers: int
    clock: Callable[[], float]
    phase: str = "starting"
    started: float = 0.0
    """When the first round of this process was planned."""
    finished: int = 0
    """Rounds finished in this process."""
    tasks: Sequence[Task] = ()
    answers: Mapping[int, Done | Failure] = field(default_factory=dict)
    """By client, for the current round."""
    scores: Mapping[tuple[bool, str], Evaluation] = field(default_factory=dict)
    """The last evaluation of each tier; on the server's own rows (True) and on all others."""
    steps: Steps | None = None
    """How far clients in training are, where that is known."""

    @property
    def elapsed(self) -> float:
        """Seconds since the first round began."""
        return self.clock() - self.started if self.tasks else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last round's end at the pace so far; None before the first step."""
        under_way = self.phase in ("training", COMBINING)
        done = len(self.answers) + sum(map(self.share_of, self.tasks)) if self.tasks else 0
        if not done:
            return None
        part = done / len(self.tasks) if under_way else 0.0
        left = self.num_rounds - self.tasks[0].round + under_way - part
        return self.elapsed / (self.finished + part) * left

    def share_of(self, task: Task) -> float:
        """Return the part of its steps that a client without an answer has done."""
        step, steps = self.steps.of(task.client) if self.steps else (0, 0)
        return step / steps if steps and task.client not in self.answers else 0.0

    def state_of(self, task: Task) -> str:
        """Return a client's state.

        Without known steps `training` is a guess, as answers come in the order of tasks.
        """
        if answer := self.answers.get(task.client):
            return "failed" if isinstance(answer, Failure) else "done"
        if self.steps and any(counts := self.steps.of(task.client)):
            return "{} of {}".format(*counts)
        open_tasks = [t.client for t in self.tasks if t.client not in self.answers]
        return "training" if task.client in open_tasks[: self.workers] else "waiting"


def left_text(p: Progress) -> str:
    """Return the time left as the end of a line; nothing before it is known."""
    return f", about {seconds_text(p.seconds_left)} left" if p.seconds_left else ""

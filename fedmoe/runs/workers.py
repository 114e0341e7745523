"""The workers that carry out a run, and the events they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fedmoe.messages.codec import Failure, Task, Update
from fedmoe.runs.scorer import Scorer

A = TypeVar("A")
R = TypeVar("R")


class Workers(Protocol):
    """A transport for a whole run, which also evaluates and is closed in the end."""

    def __call__(self, tasks: Sequence[Task], /) -> Iterator[Update | Failure]: ...
    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A], /) -> Iterator[R]: ...
    def lose_worker(self) -> None:
        """Kill a worker, where there are any, as a rehearsal: its job is done again."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """How the training of one round filled the workers: measured, and no part of a result."""

    round: int
    workers: int
    busy_seconds: float
    """Sum of the clients' own seconds, of those whose update arrived."""
    longest_seconds: float
    """The slowest of them."""
    makespan_seconds: float
    """From the start of the first client to the end of the last."""

    @property
    def ideal_seconds(self) -> float:
        """No order of the clients on that many workers can end sooner."""
        return max(self.longest_seconds, self.busy_seconds / self.workers)


@dataclass(frozen=True)
class Replaced:
    """A worker that died in the middle of a job, which another one does again."""

    pid: int
    ended_by: str
    """`SIGKILL`, or `exit code 1`."""
    job: str
    """`client 7 of round 2`, or `a job of the evaluation`."""
    deaths: int
    """Workers this job has cost so far."""


@dataclass(frozen=True)
class Injected:
    """A fault on purpose, and what came of it."""

    round: int
    client: int
    fault: str
    """As `--faults` names it."""
    outcome: str
    """`lost`, `slowed`, `refused` at the door, or `not noticed`."""


class Watch:
    """Is notified of what happens to the workers and cannot change it.

    A subclass overrides the methods that it needs.
    """

    def scheduled(self, schedule: Schedule) -> None:
        """Note how a round's training filled the workers."""

    def replaced(self, event: Replaced) -> None:
        """Note that a worker died in the middle of a job."""

    def injected(self, event: Injected) -> None:
        """Note a fault on purpose."""

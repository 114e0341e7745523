"""The interface of the workers that carry out a run, and the events that they report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from fedmoe.messages.records import Failure, Task, Update
    from fedmoe.messages.scores import Scores
    from fedmoe.rounds import Member
    from fedmoe.runs.scorer import Scorer
    from fedmoe.system.workforce import Replaced

A = TypeVar("A")
R = TypeVar("R")


class Workers(Protocol):
    """A transport for a whole run, which also evaluates and is closed at the end."""

    def __call__(self, tasks: Sequence[Task], /) -> Iterator[Update | Failure]: ...
    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A], /) -> Iterator[R]: ...
    def score(self, tasks: Sequence[Task], split: str, /) -> Iterator[Scores | Failure]:
        """Return what each task's client scores on its own rows, in order."""
        ...

    def present(self, wanted: Collection[str], least: int, seconds: float, /) -> Collection[str]:
        """Return the clients that are there, by name.

        Waits at most so many seconds for those that are wanted, and for the least number.
        """
        ...

    def lose_worker(self) -> None:
        """Kill a worker, if there are any, as a rehearsal: its job is done again."""

    def close(self) -> None: ...


@runtime_checkable
class Stream(Workers, Protocol):
    """Workers that take tasks one by one, for a server that waits for no round.

    The answers that `next` has returned are then those of a call with their tasks.
    """

    def begin(self, task: Task, /) -> None:
        """Begin a task; a client has one at a time."""

    def next(self) -> Update | Failure | None:
        """Return the answer that arrived next; None if none has within a moment."""

    def reachable(self, member: Member, /) -> bool:
        """Return whether a task of this client would begin at once."""
        ...

    def wait(self, members: Sequence[Member], /) -> bool:
        """Wait until one of the clients is reachable; False if none is for long, or none is given.

        No task is under way.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """The use of the workers in the training of one round: measured, and no part of a result."""

    round: int
    workers: int
    busy_seconds: float
    """The sum of the clients' own seconds, over those whose update arrived."""
    longest_seconds: float
    """The slowest client's."""
    makespan_seconds: float
    """From the start of the first client to the end of the last."""

    @property
    def ideal_seconds(self) -> float:
        """The bound below which no order of the clients on that many workers can end."""
        return max(self.longest_seconds, self.busy_seconds / self.workers)


@dataclass(frozen=True)
class Injected:
    """A deliberate fault, and its outcome."""

    round: int
    client: int
    fault: str
    """Its name in `--faults`."""
    outcome: str
    """`lost`, `slowed`, `refused` by validation, or `not noticed`."""


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

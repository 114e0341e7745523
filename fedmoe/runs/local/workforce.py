"""Workers and their jobs: outcomes come in the order of their numbers; the dead are replaced."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from fedmoe.runs.local.worker import Done, Raised, Worker, fork
from fedmoe.runs.workers import Replaced

if TYPE_CHECKING:
    from fedmoe.runs.scorer import Scorer

MOST_DEATHS = 3
"""Workers that one job may cost before it counts as failed."""


@dataclass(frozen=True)
class Job:
    """`function(scorer, argument)`, to be computed by a worker."""

    number: int
    """The place of its outcome among the others': 0, 1, 2 and so on."""
    function: Callable[[Scorer, Any], Any]
    argument: Any
    name: str
    """What people are told it is."""
    deaths: int = 0
    """Workers it has cost so far."""


@dataclass(frozen=True)
class Lost:
    """A job that ended every worker which tried it, and how."""

    reason: str
    ended: float
    """By the monotonic clock."""


class Workforce:
    """A fixed number of forked workers, for one batch of jobs at a time."""

    def __init__(
        self,
        scorer: Scorer,
        size: int,
        replaced: Callable[[Replaced], None],
        job_seconds: float = math.inf,
    ) -> None:
        """Fork the workers; `replaced` is told of each that dies at work, or is killed since a job
        took it `job_seconds`."""
        self.scorer, self.size, self.replaced = scorer, size, replaced
        self.job_seconds = job_seconds
        self.workers: list[Worker] = []
        self.killed: set[int] = set()
        """Workers that were killed on purpose: no job's fault."""
        # Else the first garbage collection in each worker would copy every page with an object.
        gc.freeze()
        self._fill()

    def carry_out(self, jobs: Iterable[Job]) -> Generator[Done | Lost]:
        """Start jobs in the order given, on whoever is free; outcomes in the order of numbers.

        Jobs are taken from the iterable as workers become free. Left early, what is under way is
        ended with its workers.

        Raises:
            Exception: whatever a job raised, when its turn comes.
        """
        batch = Batch(self, iter(jobs))
        number = 0
        try:
            while batch.reach(number):
                outcome = batch.outcomes.pop(number)
                if isinstance(outcome, Raised):
                    raise outcome.error
                yield outcome
                number += 1
        finally:
            for worker in batch.under_way:
                if worker in self.workers:  # else `close` has ended it already
                    self.workers.remove(worker)
                    worker.kill()

    def free(self, busy: Iterable[Worker]) -> list[Worker]:
        """The workers that are not busy, after those that are missing were forked."""
        self._fill()
        return [worker for worker in self.workers if worker not in busy]

    def bury(self, worker: Worker) -> tuple[int, str]:
        """Take a dead worker out; its process id, and how it ended."""
        self.workers.remove(worker)
        return worker.process.pid or 0, worker.bury()

    def close(self) -> None:
        """End all workers, also in the middle of a job."""
        while self.workers:
            self.workers.pop().kill()
        gc.unfreeze()

    def _fill(self) -> None:
        while len(self.workers) < self.size:
            self.workers.append(fork(self.scorer, self.workers))


class Batch:
    """The jobs of one `Workforce.carry_out`: to come, under way, and done."""

    def __init__(self, force: Workforce, to_come: Iterator[Job]) -> None:
        self.force, self.to_come = force, to_come
        self.again: deque[Job] = deque()
        """Jobs whose worker died; they come before all others."""
        self.under_way: dict[Worker, Job] = {}
        self.due: dict[Worker, float] = {}
        """When a worker's time is over, by the monotonic clock."""
        self.outcomes: dict[int, Done | Raised | Lost] = {}

    def reach(self, number: int) -> bool:
        """Work until the outcome of that number is there; False when there is no such job."""
        # First of all: the caller was away, summing, and workers may have become free meanwhile.
        self._collect(0)
        self._hand_out()
        while number not in self.outcomes and self.under_way:
            self._collect(math.inf)
            self._hand_out()
        return number in self.outcomes

    def _hand_out(self) -> None:
        while free := self.force.free(self.under_way):
            job = self.again.popleft() if self.again else next(self.to_come, None)
            if job is None:
                return
            if free[0].send(job.function, job.argument):
                self.under_way[free[0]] = job
                self.due[free[0]] = time.monotonic() + self.force.job_seconds
            else:
                self._died(free[0], job)

    def _collect(self, seconds: float) -> None:
        """Take what has come back; wait for something up to `seconds`, or till a worker is due."""
        busy = {worker.connection: worker for worker in self.under_way}
        first = min((self.due[worker] for worker in self.under_way), default=math.inf)
        seconds = min(seconds, max(0.0, first - time.monotonic()))
        for connection in wait(busy, None if seconds == math.inf else seconds):
            worker = busy[connection]  # pyright: ignore[reportArgumentType]
            outcome, job = worker.receive(), self.under_way.pop(worker)
            if outcome is None:
                self._died(worker, job)
            else:
                self.outcomes[job.number] = outcome
        now = time.monotonic()
        for worker in [worker for worker in self.under_way if self.due[worker] <= now]:
            if not worker.connection.poll():  # else it was just in time
                worker.process.kill()
                slow = f" after {self.force.job_seconds:g} s"
                self._died(worker, self.under_way.pop(worker), slow)

    def _died(self, worker: Worker, job: Job, slow: str = "") -> None:
        pid, ended_by = self.force.bury(worker)
        ended_by += slow
        job = replace(job, deaths=job.deaths + (pid not in self.force.killed))
        self.force.replaced(Replaced(pid, ended_by, job.name, job.deaths))
        if job.deaths < MOST_DEATHS:
            self.again.append(job)
        else:
            reason = f"it ended its worker {job.deaths} times, the last by {ended_by}"
            self.outcomes[job.number] = Lost(reason, time.monotonic())

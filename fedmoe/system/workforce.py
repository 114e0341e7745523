"""Forked workers that share their parent's memory; one that dies is replaced, its job done again.

A worker shares the parent's objects page by page: a new one takes milliseconds, and only what a job
changes is memory of its own. It dies with its parent.

No library's pool does this. When a worker dies, `concurrent.futures` gives up all jobs and
`multiprocessing.Pool` waits without end. `pebble` 5.2 replaces it, but forks from a thread while
the main one computes: a lock that is held then stays locked in the worker.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

from fedmoe.system.processes import ending

MOST_DEATHS = 3
"""Workers that one job may cost before it counts as failed."""
LOST = (EOFError, OSError)
"""Raised by reading from or writing to a process that is gone."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """`function(shared, argument)`, to be computed by a worker."""

    number: int
    """The place of its outcome among the others': 0, 1, 2 and so on."""
    function: Callable[[Any, Any], Any]
    argument: Any
    name: str
    """For people."""
    deaths: int = 0
    """Workers it has cost so far."""


@dataclass(frozen=True)
class Done:
    """The result of a job."""

    value: Any
    ended: float
    """By the monotonic clock, which all processes of a machine share."""


@dataclass(frozen=True)
class Lost:
    """A job that ended every worker which tried it."""

    reason: str
    ended_by: str
    """The end of the last of them: `SIGKILL`, `SIGKILL after 60 s`, or `exit code 1`."""
    ended: float
    """By the monotonic clock."""


@dataclass(frozen=True)
class Replaced:
    """A worker that died in the middle of a job, which another one does again."""

    pid: int
    ended_by: str
    job: str
    """`client 7 of round 2`, or `a job of the evaluation`."""
    deaths: int
    """Workers this job has cost so far."""


@dataclass(eq=False)
class Worker:
    """The parent's side of a worker."""

    process: ForkProcess
    connection: Connection
    job: Job | None = None
    """The job it is at."""
    due: float = math.inf
    """When its time is over, by the monotonic clock."""

    def bury(self, *, kill: bool = False) -> str:
        """Wait for its end, which comes soon or by force; return how it ended."""
        if kill:
            self.process.kill()
        self.connection.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        return ending(code)


class Workforce:
    """A fixed number of forked workers, for one batch of jobs at a time."""

    def __init__(
        self,
        shared: Any,
        size: int,
        replaced: Callable[[Replaced], object] = lambda _: None,
        *,
        job_seconds: float = math.inf,
        most_deaths: int = MOST_DEATHS,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """Fork the workers.

        Args:
            shared: the first argument of every job, as it is now.
            replaced: called with each worker that dies at work.
            job_seconds: time for a job; after it, its worker is killed and replaced.
            most_deaths: workers that one job may cost.
            prepare: called first in every worker.
        """
        self.shared, self.size, self.replaced, self.prepare = shared, size, replaced, prepare
        self.job_seconds, self.most_deaths = job_seconds, most_deaths
        self.workers: list[Worker] = []
        self.killed: set[int] = set()
        """Process numbers of workers that were killed on purpose: no job's fault."""
        self.jobs: Iterator[Job] = iter(())
        self.outcomes: dict[int, Done | Lost | Exception] = {}
        # Else the first garbage collection in each worker would copy every page with an object.
        gc.freeze()
        self._fill()

    def carry_out(self, jobs: Iterable[Job]) -> Generator[Done | Lost]:
        """Start jobs in the order given, on whichever worker is free; yield by their numbers.

        Jobs are taken from the iterable as workers become free. If this is left early, workers in
        the middle of a job are killed.

        Raises:
            Exception: whatever a job raised, when its turn comes.
        """
        self.jobs, self.outcomes, number = iter(jobs), {}, 0
        try:
            while self._reach(number):
                outcome = self.outcomes.pop(number)
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
                number += 1
        finally:
            self._kill([worker for worker in self.workers if worker.job])

    def add(self, jobs: Iterable[Job]) -> None:
        """Carry out further jobs after those that are left, with the numbers that follow."""
        self.jobs = chain(self.jobs, jobs)

    def close(self) -> None:
        """End all workers, even in the middle of a job."""
        self._kill(list(self.workers))
        gc.unfreeze()

    def _kill(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            self.workers.remove(worker)
            worker.bury(kill=True)

    def _fill(self) -> None:
        while len(self.workers) < self.size:
            self.workers.append(self._fork())

    def _fork(self) -> Worker:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        # Pipes of the parent, which the new worker must not keep open.
        parents = [ours, *(worker.connection for worker in self.workers)]
        # A signal between fork and `_serve` would raise KeyboardInterrupt in the worker, too.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            process = context.Process(
                target=self._serve, args=(theirs, parents, os.getpid(), blocked), daemon=True
            )
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        return Worker(process, ours)

    def _serve(
        self,
        connection: Connection,
        parents: list[Connection],
        parent: int,
        blocked: set[signal.Signals],
    ) -> None:
        """Live as a worker; never return into what the parent was doing."""
        try:
            for other in parents:
                other.close()
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(0)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self.prepare()
            while True:
                connection.send(_outcome(self.shared, *connection.recv()))
        except LOST:
            os._exit(0)  # the parent closed the pipe, or is gone
        finally:
            os._exit(1)

    def _reach(self, number: int) -> bool:
        """Work until there is an outcome of that number; return False if there is no such job."""
        # First of all: the caller was busy, and workers may have become free meanwhile.
        self._collect(0)
        self._hand_out()
        while number not in self.outcomes and any(worker.job for worker in self.workers):
            self._collect(math.inf)
            self._hand_out()
        return number in self.outcomes

    def _hand_out(self) -> None:
        """Give every free worker a job, as long as there are any."""
        self._fill()
        while free := next((worker for worker in self.workers if worker.job is None), None):
            if (job := next(self.jobs, None)) is None:
                return
            free.job, free.due = job, time.monotonic() + self.job_seconds
            try:
                free.connection.send((job.function, job.argument))
            except LOST:
                self._died(free)
            self._fill()

    def _collect(self, seconds: float) -> None:
        """Take what has come back; wait up to `seconds`, or until a worker's time is over."""
        busy = {worker.connection: worker for worker in self.workers if worker.job}
        first = min((worker.due for worker in busy.values()), default=math.inf)
        seconds = min(seconds, max(0.0, first - time.monotonic()))
        for connection in wait(busy, None if seconds == math.inf else seconds):
            worker = busy[connection]  # pyright: ignore[reportArgumentType]
            assert worker.job
            try:
                self.outcomes[worker.job.number] = worker.connection.recv()
                worker.job = None
            except LOST:
                self._died(worker)
        now = time.monotonic()
        for worker in [worker for worker in self.workers if worker.job and worker.due <= now]:
            if not worker.connection.poll():  # else it was just in time
                self._died(worker, slow=True)

    def _died(self, worker: Worker, *, slow: bool = False) -> None:
        job = worker.job
        assert job
        self.workers.remove(worker)
        pid, ended_by = worker.process.pid or 0, worker.bury(kill=slow)
        if slow:
            ended_by += f" after {self.job_seconds:g} s"
        job = replace(job, deaths=job.deaths + (pid not in self.killed))
        self.replaced(Replaced(pid, ended_by, job.name, job.deaths))
        if job.deaths < self.most_deaths:
            self.jobs = chain([job], self.jobs)
        else:
            reason = f"it ended its worker {job.deaths} times, the last by {ended_by}"
            self.outcomes[job.number] = Lost(reason, ended_by, time.monotonic())


def _outcome(shared: Any, function: Callable[[Any, Any], Any], argument: Any) -> Done | Exception:
    try:
        return Done(function(shared, argument), time.monotonic())
    except Exception as error:
        error.add_note(f"in a worker:\n{''.join(traceback.format_exception(error))}")
        return error

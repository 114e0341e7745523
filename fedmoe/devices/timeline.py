"""Arrivals and their staleness if the server waits for no round: buffered asynchrony."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

Choose = Callable[[int, frozenset[int]], int | None]
"""The client that takes a job: of the job's number, and of the clients that are at work. None lets
the place wait for the server's next version, or for a client that can be reached again."""


@dataclass(frozen=True, order=True)
class Job:
    """One client's local training, from its start on; earlier numbers started earlier."""

    number: int
    client: int
    version: int
    """Server updates that the model it was sent had seen."""
    start_seconds: float


@dataclass(frozen=True)
class Finish:
    """The end of a job."""

    seconds: float
    """When it ended, on the clock that started it."""
    job: Job
    counts: bool = True
    """False for a job that failed: it takes no place in the buffer."""


class Clock(Protocol):
    """Starts jobs, and tells which ended next: in virtual time, or as nodes really answer."""

    def reachable(self, client: int) -> bool:
        """Return whether a client can start now."""
        ...

    def start(self, job: Job) -> None:
        """Start a job at its `start_seconds`."""

    def next(self) -> Finish | None:
        """Return the next job that ends; None if none has so far, and others may start by now.

        Some job is at work.
        """
        ...

    def wait(self) -> bool:
        """Wait, while nobody is at work, for somebody who may start; False if nobody will."""
        ...


class Virtual:
    """A clock on which a job's duration is known as it starts."""

    def __init__(self, duration: Callable[[Job], float]) -> None:
        """Keep how to tell a job's virtual seconds, more than 0; it is called once a start."""
        self.duration = duration
        self.ends: list[tuple[float, Job]] = []

    def reachable(self, client: int) -> bool:
        """Return True: how often clients can be reached is the chooser's affair."""
        return True

    def start(self, job: Job) -> None:
        """Note when the job will end."""
        seconds = self.duration(job)
        assert seconds > 0, (job, seconds)
        heappush(self.ends, (job.start_seconds + seconds, job))

    def next(self) -> Finish:
        """Return the job that ends first; of those at the same moment, the one started first."""
        return Finish(*heappop(self.ends))

    def wait(self) -> bool:
        """Return False: who may start does not depend on this clock."""
        return False


@dataclass(frozen=True)
class Arrival:
    """The end of a job as the server sees it."""

    job: Job
    finish_seconds: float
    staleness: int
    """Server updates since the job started."""
    fills_buffer: bool
    """True if the server makes an update with it, and with those since the last."""
    counts: bool = True
    """False if it is a failure."""


class Timeline:
    r"""The order of starts and arrivals in an asynchronous run, one server update after another.

    `concurrency` jobs are at work at any time. When one arrives, its update goes into the buffer;
    a buffer of `buffer_size` updates makes the server's next version; then another client starts
    on the version there is. The staleness $\tau$ of an update counts the versions made since its
    job started. A failure arrives, too, and takes no place in the buffer.

    The order is a function of what `choose` and the clock return. Between two steps no job starts,
    and `position` is all that a later process needs to continue there.

    Source: FedBuff (Nguyen et al. 2022, arXiv:2106.06639, Alg. 1). There clients arrive at random
    times; here when their device is done, or their node answers.
    """

    def __init__(self, choose: Choose, clock: Clock, *, concurrency: int, buffer_size: int) -> None:
        """Begin at 0 s, with nobody at work; `choose` is called in the order of starts."""
        assert concurrency >= 1, concurrency
        assert buffer_size >= 1, buffer_size
        self.choose, self.clock = choose, clock
        self.concurrency, self.buffer_size = concurrency, buffer_size
        self.number, self.version, self.now = 0, 0, 0.0
        self.at_work: list[Job] = []

    def step(self, heard: Callable[[Arrival], None] = lambda arrival: None) -> list[Arrival]:
        """Return the arrivals up to the server's next version, in order.

        They are fewer than the buffer holds, or none, where nobody is left who could send more.

        Args:
            heard: is told of each arrival before the next job starts.
        """
        arrivals: list[Arrival] = []
        missing = self.buffer_size
        while missing:
            self._start()
            if self.at_work:
                finish = self.clock.next()
            elif self.clock.wait():
                continue
            else:
                break
            if finish is None:
                continue
            job, self.now = finish.job, finish.seconds
            self.at_work.remove(job)
            missing -= finish.counts
            staleness = self.version - job.version
            arrivals.append(Arrival(job, self.now, staleness, not missing, finish.counts))
            heard(arrivals[-1])
        self.version += 1
        return arrivals

    def _start(self) -> None:
        """Start jobs until as many are at work as may be, or nobody may start."""
        while len(self.at_work) < self.concurrency:
            client = self.choose(self.number, frozenset(job.client for job in self.at_work))
            if client is None:
                return
            job = Job(self.number, client, self.version, self.now)
            self.clock.start(job)
            self.at_work.append(job)
            self.number += 1

    def position(self) -> dict[str, object]:
        """Return where it is between two steps, for JSON: its jobs at work as rows of a `Job`."""
        rows = [[j.number, j.client, j.version, j.start_seconds] for j in self.at_work]
        return {"number": self.number, "now": self.now, "at_work": rows}

    def resume(self, version: int, number: int, now: float, at_work: Sequence[Sequence]) -> None:
        """Go to a position after `version` updates; those who were at work there start again."""
        self.version, self.number, self.now = version, number, now
        for row in at_work:
            job = Job(*row)
            self.clock.start(job)
            self.at_work.append(job)

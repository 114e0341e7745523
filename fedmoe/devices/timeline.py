"""Arrivals and their staleness if the server waits for no round: buffered asynchrony."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from fedmoe.seeds import numpy_rng

Choose = Callable[[int, frozenset[int]], int | None]
"""The client that takes a job: of the job's number, and of the clients that are at work. None lets
the place wait for the server's next version."""


@dataclass(frozen=True, order=True)
class Job:
    """One client's local training, from its start on; earlier numbers started earlier."""

    number: int
    client: int
    version: int
    """Server updates that the model it was sent had seen."""
    start_seconds: float


@dataclass(frozen=True)
class Arrival:
    """An update that reached the server."""

    job: Job
    finish_seconds: float
    staleness: int
    """Server updates since the job started."""
    fills_buffer: bool
    """True if the server makes an update with it, and with those since the last."""


def timeline(
    choose: Choose,
    duration: Callable[[Job], float],
    *,
    concurrency: int,
    buffer_size: int,
    num_updates: int,
) -> Iterator[Arrival]:
    r"""Yield arrivals in the order of virtual time, until the server has made `num_updates`.

    `concurrency` jobs are at work at any time. When one arrives, its update goes into the buffer;
    a buffer of `buffer_size` updates makes the server's next version; then another client starts
    on the version there is. The staleness $\tau$ of an update counts the versions made since its
    job started. Of arrivals at the same moment the job that started first comes first.

    The order is a function of what `choose` and `duration` return. A consumer may do the server's
    update before it asks for the next arrival: no job starts in between.

    Args:
        choose: called once a job, in the order of starts; at first for all at 0 s.
        duration: virtual seconds of a job, more than 0; called as it starts.

    Source: FedBuff (Nguyen et al. 2022, arXiv:2106.06639, Alg. 1). There clients arrive at random
    times; here when their device is done.
    """
    assert concurrency >= 1, concurrency
    assert buffer_size >= 1, buffer_size
    at_work: list[tuple[float, Job]] = []
    number, version, buffered, now = 0, 0, 0, 0.0
    while version < num_updates:
        while len(at_work) < concurrency:
            client = choose(number, frozenset(job.client for _, job in at_work))
            if client is None:
                break
            job = Job(number, client, version, now)
            seconds = duration(job)
            assert seconds > 0, (job, seconds)
            heappush(at_work, (now + seconds, job))
            number += 1
        assert at_work, "nobody is at work, and nobody may start"
        now, job = heappop(at_work)
        buffered += 1
        yield Arrival(job, now, version - job.version, buffered == buffer_size)
        if buffered == buffer_size:
            version, buffered = version + 1, 0


def any_idle(seed: int, num_clients: int) -> Choose:
    """A `choose` that draws evenly among the clients not at work, from `(seed, number)`.

    The concurrency must be at most `num_clients`.
    """

    def choose(number: int, at_work: frozenset[int]) -> int:
        idle = [client for client in range(num_clients) if client not in at_work]
        assert idle, f"all {num_clients} clients are at work"
        return idle[numpy_rng(seed, "job", number).integers(len(idle))]

    return choose

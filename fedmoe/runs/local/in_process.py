"""Transports of this machine: this process, or forked workers that share the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from fedmoe.runs.local.answers import answer_together, read, read_scores, score_jobs, score_own
from fedmoe.runs.local.passes import passes
from fedmoe.runs.local.pool import Pool
from fedmoe.runs.local.schedule import Tally, expected_work
from fedmoe.system.files import expanded

if TYPE_CHECKING:
    from fedmoe.messages.records import Failure, Task, Update
    from fedmoe.messages.scores import Scores
    from fedmoe.runs.scorer import Scorer
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Watch

A = TypeVar("A")
R = TypeVar("R")


class InProcess:
    """Clients one after another on the resident model of this process."""

    def __init__(self, server: ServerSide, scorer: Scorer, watches: Sequence[Watch] = ()) -> None:
        self.server, self.scorer, self.watches = server, scorer, watches

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order; see `rounds.Transport`."""
        tally, seconds, early = Tally(), 0.0, {}
        together = passes(self.server.setup, tasks)
        for number, task in enumerate(tasks):
            started = time.monotonic()
            if number not in early:
                same = next(together)
                found = answer_together(self.scorer.client, [tasks[i] for i in same])
                early |= zip(same, found, strict=True)
            update = read(self.server, early.pop(number), task)
            seconds += time.monotonic() - started  # without the caller's own work
            tally.add(update)
            yield update
        for watch in self.watches if tasks else ():
            watch.scheduled(tally.schedule(tasks[0].round, 1, seconds))

    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Return `job(scorer, argument)` for each argument, in order."""
        return (job(self.scorer, argument) for argument in arguments)

    def score(self, tasks: Sequence[Task], split: str) -> Iterator[Scores | Failure]:
        """Return what each task's client scores on its own rows, in order."""
        answers = self.map(score_own, score_jobs(tasks, split))
        return read_scores(self.server, answers, tasks, split)

    def present(self, wanted: Collection[str], least: int, seconds: float) -> Collection[str]:
        """Return the clients whose rows are here."""
        return [*self.scorer.client.rows]

    def lose_worker(self) -> None:
        """Do nothing: there are none."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


Transport = InProcess | Pool


def make_transport(server: ServerSide, scorer: Scorer, watches: Sequence[Watch] = ()) -> Transport:
    """Make the transport that `simulation.workers` asks for."""
    simulation = server.setup.experiment.simulation
    # A forked process cannot use its parent's GPU.
    if simulation.workers == 1 or server.setup.model.device.type == "cuda":
        return InProcess(server, scorer, watches)
    return Pool(
        server,
        scorer,
        simulation.workers,
        work=expected_work(server),
        folder=expanded(simulation.folder),
        watches=watches,
        job_seconds=simulation.job_seconds or math.inf,
    )

"""Clients side by side on forked workers; if one dies, it is replaced and its client done again."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure, Update
from fedmoe.runs.local.answers import Folder, fetch, read, read_scores, score_jobs, score_own, train
from fedmoe.runs.local.passes import passes
from fedmoe.runs.local.schedule import Tally, TimeModel, longest_first
from fedmoe.system.processes import process_of
from fedmoe.system.workforce import Done, Job, Lost, Workforce

if TYPE_CHECKING:
    from fedmoe.messages.records import Message, Task
    from fedmoe.messages.scores import Scores
    from fedmoe.runs.local.answers import Order
    from fedmoe.runs.local.schedule import Work
    from fedmoe.runs.scorer import Scorer
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Watch
    from fedmoe.system.workforce import Replaced

A = TypeVar("A")
R = TypeVar("R")

WAITING = ".waiting-"
"""The beginning of the name of a folder of waiting updates; the number of its process follows."""


class Pool:
    """Forked processes that share the frozen weights and the data with this one."""

    def __init__(
        self,
        server: ServerSide,
        scorer: Scorer,
        workers: int,
        *,
        work: Work | None = None,
        folder: Path | None = None,
        watches: Sequence[Watch] = (),
        job_seconds: float = math.inf,
    ) -> None:
        """Fork the workers, each of which computes on one thread.

        Args:
            server: checks the answers, in this process.
            scorer: inherited by the workers: the client side and the evaluation sets.
            work: the expected FLOPs of a task; by default all are taken to be equal.
            folder: where updates wait for their turn, in a folder that `close` removes.
            watches: notified of schedules and of workers that were replaced.
            job_seconds: time for a job; after it, its worker is killed and replaced.

        Raises:
            FedMoEError: this is not Linux.
        """
        if not sys.platform.startswith("linux"):
            raise FedMoEError(f"simulation.workers is {workers}; more than 1 needs Linux (fork)")
        self.server, self.scorer, self.watches = server, scorer, watches
        self.work: Work = work or (lambda _: 1.0)
        self.times = TimeModel()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        self.waiting = tempfile.TemporaryDirectory(prefix=f"{WAITING}{os.getpid()}-", dir=folder)
        self.folder = Folder(Path(self.waiting.name))
        self.force = Workforce(
            scorer, workers, self._replaced, job_seconds=job_seconds, prepare=_one_thread
        )

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order; see `rounds.Transport`."""
        tally, started = Tally(), time.monotonic()
        self.ended = started
        work = [self.work(task) for task in tasks]
        orders = [self.folder.order(task) for task in tasks]
        try:
            with closing(self._answers(tasks, orders, work)) as answers:
                for task, order, flops, made in zip(tasks, orders, work, answers, strict=True):
                    answer = read(self.server, fetch(made, order), task)
                    if isinstance(answer, Update):
                        self.times.learn(task.client, flops, answer.seconds)
                    tally.add(answer)
                    yield answer
        finally:
            self.folder.clear()
        for watch in self.watches if tasks else ():
            watch.scheduled(tally.schedule(tasks[0].round, self.force.size, self.ended - started))

    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Yield `job(scorer, argument)` for each argument, in order.

        Raises:
            FedMoEError: a job ended every worker that tried it.
        """
        name = getattr(job, "__name__", "job").strip("_")
        jobs = (Job(n, job, argument, f"{name} {n}") for n, argument in enumerate(arguments))
        with closing(self.force.carry_out(jobs)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Lost):
                    raise FedMoEError(f"{name}: {outcome.reason}; is there enough memory?")
                yield outcome.value

    def score(self, tasks: Sequence[Task], split: str) -> Iterator[Scores | Failure]:
        """Return what each task's client scores on its own rows, in order."""
        answers = self.map(score_own, score_jobs(tasks, split))
        return read_scores(self.server, answers, tasks, split)

    def present(self, wanted: Collection[str], least: int, seconds: float) -> Collection[str]:
        """Return the clients whose rows are here."""
        return [*self.scorer.client.rows]

    def lose_worker(self) -> None:
        """Kill the first worker; its job is done again."""
        pid = self.force.workers[0].process.pid if self.force.workers else None
        if pid:
            self.force.killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the workers and remove their files."""
        self.force.close()
        self.waiting.cleanup()

    def _answers(
        self, tasks: Sequence[Task], orders: Sequence[Order], work: Sequence[float]
    ) -> Generator[Message | Failure]:
        """Yield the answers in the order of tasks, from passes of which the longest begin first.

        The clients of a pass that ended every worker have another pass each.
        """

        def job(number: int) -> Job:
            places = together[number]
            who = ", ".join(str(tasks[i].client) for i in places)
            name = f"client{'s' * (len(places) > 1)} {who} of round {tasks[places[0]].round}"
            return Job(number, train, [orders[i] for i in places], name)

        pairs = zip(tasks, work, strict=True)
        expected = [self.times.expected(task.client, flops) for task, flops in pairs]
        together, found = [*passes(self.server.setup, tasks)], {}
        order = longest_first([sum(expected[i] for i in places) for places in together])
        turns = iter(range(len(tasks)))
        turn = next(turns, None)
        with closing(self.force.carry_out(map(job, order))) as outcomes:
            for places in together:
                outcome = next(outcomes)
                self.ended = max(self.ended, outcome.ended)
                if isinstance(outcome, Done):
                    found |= zip(places, outcome.value, strict=True)
                elif len(places) > 1:
                    numbers = range(len(together), len(together) + len(places))
                    together += [[i] for i in places]
                    self.force.add(map(job, numbers))
                else:
                    task = tasks[places[0]]
                    found[places[0]] = Failure(task.round, task.client, outcome.reason)
                while turn in found:
                    yield found.pop(turn)
                    turn = next(turns, None)

    def _replaced(self, event: Replaced) -> None:
        for watch in self.watches:
            watch.replaced(event)


def _one_thread() -> None:
    # OpenMP's threads do not survive a fork: a worker would wait for a second one without end.
    torch.set_num_threads(1)


def sweep(folder: Path) -> None:
    """Remove waiting updates of killed processes, zombies included."""
    for left in folder.glob(f"{WAITING}*-*"):
        pid = left.name.removeprefix(WAITING).partition("-")[0]
        if pid.isdecimal() and process_of(int(pid)) is None:
            shutil.rmtree(left, ignore_errors=True)

"""Carry out tasks on this machine: in this process, or on forked workers that share the model."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from fedmoe.errors import FedMoEError
from fedmoe.prepare import Prepared
from fedmoe.wire import Failure, Message, Task, Update, pack_task, unpack_task

A = TypeVar("A")
R = TypeVar("R")

AHEAD = 2
"""Jobs a worker may be ahead of the oldest unfinished one: this bounds what waits in memory."""

_inherited: Prepared | None = None  # set in a worker by fork: the parent's model and data


class InProcess:
    """Clients one after another on the resident model of this process."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """One answer per task, in order; see `rounds.Transport`."""
        return (read(self.prepared, answer(self.prepared, t), t) for t in tasks)

    def map(self, job: Callable[[Prepared, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """`job(prepared, argument)` for each argument, in order."""
        return (job(self.prepared, argument) for argument in arguments)

    def close(self) -> None:
        """Nothing to give back."""


class Pool:
    """Clients side by side on forked processes, which share the frozen weights with this one."""

    def __init__(self, prepared: Prepared, workers: int) -> None:
        if not sys.platform.startswith("linux"):
            raise FedMoEError(f"simulation.workers is {workers}; more than 1 needs Linux (fork)")
        self.workers = workers
        self.prepared = prepared
        context = multiprocessing.get_context("fork")
        self.executor = ProcessPoolExecutor(workers, context, _inherit, (prepared,))

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """One answer per task, in order; see `rounds.Transport`."""
        for task, answer in zip(tasks, self.map(_train, map(pack_task, tasks)), strict=True):
            yield read(self.prepared, answer, task)

    def map(self, job: Callable[[Prepared, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """`job(prepared, argument)` for each argument, in order, at most a few ahead."""
        waiting: deque[Future[R]] = deque()
        for argument in arguments:
            waiting.append(self.executor.submit(_call, job, argument))
            if len(waiting) > AHEAD * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the workers."""
        self.executor.shutdown(cancel_futures=True)


Transport = InProcess | Pool


def make_transport(prepared: Prepared) -> Transport:
    """The transport that `simulation.workers` asks for."""
    workers = prepared.experiment.simulation.workers
    return InProcess(prepared) if workers == 1 else Pool(prepared, workers)


def answer(prepared: Prepared, task: Task) -> Message | Failure:
    """The packed update of a task, or why there is none; the round goes on without it."""
    try:
        return prepared.answer(task)
    except FedMoEError as error:
        return Failure(task.round, task.client, str(error))


def read(prepared: Prepared, answer: Message | Failure, task: Task) -> Update | Failure:
    """The checked update in an answer, or why there is none."""
    if isinstance(answer, Failure):
        return answer
    try:
        return prepared.read(answer, task)
    except FedMoEError as error:
        return Failure(task.round, task.client, str(error))


def _inherit(prepared: Prepared) -> None:
    global _inherited
    _inherited = prepared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _call(job: Callable[[Prepared, A], R], argument: A) -> R:
    assert _inherited is not None
    return job(_inherited, argument)


def _train(prepared: Prepared, message: Message) -> Message | Failure:
    return answer(prepared, unpack_task(message, prepared.model.layout))

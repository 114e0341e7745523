"""A client's answer to its task, made and read in one process, or passed between two in files.

A round's adapter is written once, into a file that every worker maps; an update waits in a separate
file until it is summed. So neither takes the parent's memory, however many clients a round has.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fedmoe.adapter import Adapter
from fedmoe.budget.replan import ran_out_of_memory
from fedmoe.errors import CheckpointError, FedMoEError
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure, Task
from fedmoe.runs import own_scores

if TYPE_CHECKING:
    from fedmoe.adapter import Layout
    from fedmoe.messages.records import Message, Update
    from fedmoe.messages.scores import Scores
    from fedmoe.runs.client_side import ClientSide, Ended
    from fedmoe.runs.scorer import Scorer
    from fedmoe.runs.server_side import ServerSide

M = TypeVar("M")
LOG = logging.getLogger(__name__)


def answer(client: ClientSide, task: Task) -> Message | Failure:
    """Return the packed update of a task, or why there is none; the round continues without it.

    Raises:
        CheckpointError: the client's state is damaged or missing: no result would be the run's.
    """
    return _or_failure(task, lambda: client.answer(task))


def answer_together(client: ClientSide, tasks: Sequence[Task]) -> list[Message | Failure]:
    """Return the answers of clients that train in one pass.

    If the pass fails they train one after another, so that each fails or not as it does alone.
    """
    if len(tasks) == 1:
        return [answer(client, tasks[0])]
    try:
        ended = client.train_together(tasks)
    except CheckpointError:
        raise
    except (FedMoEError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, FedMoEError) or ran_out_of_memory(error)):
            raise
        who = ", ".join(str(task.client) for task in tasks)
        said = "a pass of clients %s of round %d failed; they train one after another: %s"
        LOG.warning(said, who, tasks[0].round, error)
    else:
        return [_or_failure(e.task, partial(_packed, client, e)) for e in ended]
    return [answer(client, task) for task in tasks]


def _packed(client: ClientSide, ended: Ended) -> Message:
    return client.packed(client.closed(ended), ended.task)


def read(server: ServerSide, answer: Message | Failure, task: Task) -> Update | Failure:
    """Return the checked update in an answer, or why there is none."""
    if isinstance(answer, Failure):
        return answer
    return _or_failure(task, lambda: server.read(answer, task))


def score_own(scorer: Scorer, job: tuple[Message, str, Task]) -> Message | Failure:
    """Return a client's scores on its own rows, or why there are none."""
    message, split, task = job
    return _or_failure(task, lambda: own_scores.score_own(scorer.client, message, split))


def read_scores(
    server: ServerSide, answers: Iterator[Message | Failure], tasks: Sequence[Task], split: str
) -> Iterator[Scores | Failure]:
    """Yield the checked scores in each answer, or why there are none."""
    for task, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, Failure):
            yield answer
        else:
            yield _or_failure(task, partial(own_scores.read_scores, server, answer, task, split))


def score_jobs(tasks: Sequence[Task], split: str) -> Iterator[tuple[Message, str, Task]]:
    """Yield the jobs that make `score_own` score a split."""
    for task in tasks:
        bare = replace(task, adapter=Adapter(task.adapter.layout.only(), torch.empty(0)))
        yield pack_task(task), split, bare


def _or_failure(task: Task, make: Callable[[], M]) -> M | Failure:
    try:
        return make()
    except CheckpointError:
        raise
    except FedMoEError as error:
        return Failure(task.round, task.client, str(error), getattr(error, "code", "failed"))


@dataclass(frozen=True)
class Order:
    """A task for another process: small values, and the adapter in a file."""

    values: dict[str, Any]
    rescaler: tuple[float, ...]
    """As Python floats, which hold a float32 without loss."""
    adapter: Path
    answer: Path
    """The file for the update's buffer."""

    def task(self, layout: Layout) -> Task:
        """Return the task, with its adapter mapped from the file, which stays as it is."""
        # An empty file cannot be mapped.
        flat = torch.empty(0)
        if layout.size:
            flat = torch.from_file(str(self.adapter), shared=False, size=layout.size)
        return Task(
            **self.values, rescaler=torch.tensor(self.rescaler), adapter=Adapter(layout, flat)
        )


class Folder:
    """The folder in which adapters and updates wait."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders = 0
        self.adapters: dict[int, tuple[Adapter, Path]] = {}
        """By `id`: the adapter, so that no other object takes the id, and its file."""

    def order(self, task: Task) -> Order:
        """Return a task as an order; an adapter that several tasks share is written once."""
        self.orders += 1
        if id(task.adapter) not in self.adapters:
            path = self.path / f"adapter-{task.round}-{len(self.adapters)}"
            task.adapter.flat.contiguous().numpy().tofile(path)
            self.adapters[id(task.adapter)] = task.adapter, path
        apart = ("adapter", "rescaler")
        values = {f.name: getattr(task, f.name) for f in fields(task) if f.name not in apart}
        return Order(
            values,
            tuple(task.rescaler.tolist()),
            self.adapters[id(task.adapter)][1],
            self.path / f"answer-{self.orders}",
        )

    def clear(self) -> None:
        """Remove the files of the round that has ended."""
        self.adapters.clear()
        for path in self.path.glob("*"):  # nothing, if the folder is gone
            path.unlink()


def train(scorer: Scorer, orders: Sequence[Order]) -> list[Message | Failure]:
    """Carry out the orders of a pass, in a worker; the answers' buffers are left in files."""
    setup, tasks = scorer.client.setup, []
    for order in orders:
        layouts = setup.layouts(order.values["tier"], order.values["round"])
        tasks.append(order.task(layouts.task))
    made = answer_together(scorer.client, tasks)
    for i, (order, message) in enumerate(zip(orders, made, strict=True)):
        if not isinstance(message, Failure):
            order.answer.write_bytes(message.buffer)
            made[i] = replace(message, buffer=b"")
    return made


def fetch(made: Message | Failure, order: Order) -> Message | Failure:
    """Return the answer with its buffer, in the parent; the buffer's file is removed."""
    if isinstance(made, Failure):
        return made
    with order.answer.open("rb") as file:
        # Mapped, not read: a new page for each 4 KiB of a copy costs more than all checks do.
        # Writable in memory, else numpy would copy it after all.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    order.answer.unlink()
    return replace(made, buffer=memoryview(mapped))

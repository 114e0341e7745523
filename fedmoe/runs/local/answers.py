"""A client's answer to its task, made and read: within one process, or handed over in files.

Between processes of this machine a round's adapter is written once, into a file that every worker
maps; an update waits in a file of its own until its turn comes to be summed. Neither is in the
parent's memory meanwhile, however many clients a round has.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import CheckpointError, FedMoEError
from fedmoe.messages.codec import Failure, Message, Task, Update
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide


def answer(client: ClientSide, task: Task) -> Message | Failure:
    """The packed update of a task, or why there is none; the round goes on without it.

    Raises:
        CheckpointError: what the client kept is not to be had: no result would be the run's own.
    """
    try:
        return client.answer(task)
    except CheckpointError:
        raise
    except FedMoEError as error:
        return Failure(task.round, task.client, str(error), getattr(error, "code", "failed"))


def read(server: ServerSide, answer: Message | Failure, task: Task) -> Update | Failure:
    """The checked update in an answer, or why there is none."""
    if isinstance(answer, Failure):
        return answer
    try:
        return server.read(answer, task)
    except FedMoEError as error:
        return Failure(task.round, task.client, str(error), getattr(error, "code", "failed"))


@dataclass(frozen=True)
class Order:
    """A task for another process: small values as they are, the adapter in a file."""

    values: dict[str, Any]
    rescaler: tuple[float, ...]
    """A float32 is a Python float and back without loss."""
    adapter: Path
    answer: Path
    """Where the update's buffer goes."""

    def task(self, layout: Layout) -> Task:
        """The task, its adapter mapped from the file and never changed there."""
        # An empty file cannot be mapped.
        flat = torch.empty(0)
        if layout.size:
            flat = torch.from_file(str(self.adapter), shared=False, size=layout.size)
        return Task(
            **self.values, rescaler=torch.tensor(self.rescaler), adapter=Adapter(layout, flat)
        )


class Folder:
    """Where adapters and updates lie while they wait."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders = 0
        self.adapters: dict[int, tuple[Adapter, Path]] = {}
        """By identity: the adapter, kept so that its id stays its own, and its file."""

    def order(self, task: Task) -> Order:
        """A task as an order; an adapter that several tasks share is written once."""
        self.orders += 1
        if id(task.adapter) not in self.adapters:
            path = self.path / f"adapter-{task.round}-{len(self.adapters)}"
            task.adapter.flat.contiguous().numpy().tofile(path)
            self.adapters[id(task.adapter)] = task.adapter, path
        kept_apart = ("adapter", "rescaler")
        values = {f.name: getattr(task, f.name) for f in fields(task) if f.name not in kept_apart}
        return Order(
            values,
            tuple(task.rescaler.tolist()),
            self.adapters[id(task.adapter)][1],
            self.path / f"answer-{self.orders}",
        )

    def clear(self) -> None:
        """Remove what the round that has ended left."""
        self.adapters.clear()
        for path in self.path.glob("*"):  # nothing, if the folder is gone
            path.unlink()


def train(scorer: Scorer, order: Order) -> Message | Failure:
    """In a worker: carry out an order; the answer without its buffer, which lies in the file."""
    layouts = scorer.client.setup.layouts(order.values["tier"], order.values["round"])
    made = answer(scorer.client, order.task(layouts.task))
    if isinstance(made, Failure):
        return made
    order.answer.write_bytes(made.buffer)
    return replace(made, buffer=b"")


def fetch(made: Message | Failure, order: Order) -> Message | Failure:
    """In the parent: the answer with its buffer, whose file is gone after this."""
    if isinstance(made, Failure):
        return made
    with order.answer.open("rb") as file:
        # Mapped, not read: a new page for each 4 KiB of a copy costs more than all checks do; and
        # as if to be written to, or numpy would copy it after all.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    order.answer.unlink()
    return replace(made, buffer=memoryview(mapped))

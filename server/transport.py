"""Tasks out over Flower's grid and updates in, in the order of the tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from fedmoe.code import code_digest
from fedmoe.config.load import to_yaml
from fedmoe.errors import WireError
from fedmoe.prepared import Prepared
from fedmoe.wire import Failure, Task, Update, pack_task
from server.messages import read_update, task_content
from server.nodes import Held, Nodes, deal
from server.post import Lost, Post

A = TypeVar("A")
R = TypeVar("R")

AHEAD = 2
"""Tasks per node that may be ahead of the oldest open one: this bounds what waits in memory."""


class GridTransport:
    """Clients on Flower's nodes, one task at a time on each; see `rounds.Transport`."""

    def __init__(
        self, grid: Grid, prepared: Prepared, num_nodes: int, node_seconds: float,
        task_seconds: float,
    ) -> None:  # fmt: skip
        """Wait up to `node_seconds` for `num_nodes` nodes, and `task_seconds` for an update."""
        self.grid, self.prepared, self.task_seconds = grid, prepared, task_seconds
        self.code = code_digest(Path(__file__).parent.parent / "clients")
        self.experiment = to_yaml(prepared.experiment)
        self.nodes = Nodes(grid, self.code, num_nodes, node_seconds)

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """One answer per task, in order.

        Raises:
            FedMoEError: too few nodes; a task that fails is an answer, not an error.
        """
        held = self.nodes.ready()
        post = Post(self.grid, self.task_seconds)
        queues, answers = _deal(tasks, held)
        under_way: dict[int, Task] = {}
        for number, task in enumerate(tasks):
            near = {t.client for t in tasks[number : number + AHEAD * len(held)]}
            while task.client not in answers:
                for node, queue in queues.items():
                    if node not in under_way and queue and queue[0].client in near:
                        under_way[node] = queue.popleft()
                        post.send(node, MessageType.TRAIN, self._content(under_way[node]))
                for node, answer in post.arrived():
                    done = under_way.pop(node)
                    answers[done.client] = self._read(done, answer)
            yield answers.pop(task.client)

    def map(self, job: Callable[[Prepared, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """`job(prepared, argument)` for each argument, in order, in this process."""
        return (job(self.prepared, argument) for argument in arguments)

    def close(self) -> None:
        """Nothing to give back."""

    def _content(self, task: Task) -> RecordDict:
        return task_content(pack_task(task), self.experiment, self.code, self.prepared.run_id)

    def _read(self, task: Task, answer: RecordDict | Lost) -> Update | Failure:
        """The checked update in an answer, or why there is none."""
        if isinstance(answer, Lost):
            return Failure(task.round, task.client, answer.reason, "late")
        try:
            return self.prepared.read(read_update(answer), task)
        except WireError as error:
            return Failure(task.round, task.client, str(error), error.code)


def _deal(
    tasks: Sequence[Task], held: Held
) -> tuple[dict[int, deque[Task]], dict[int, Update | Failure]]:
    """Each node's tasks in their order, and by client the failures of those that no node takes."""
    queues: dict[int, deque[Task]] = {node: deque() for node in held}
    failures: dict[int, Update | Failure] = {}
    for task in tasks:
        node = deal(task.client, held)
        if node is None:
            reason = f"no node holds the data of client {task.client}"
            failures[task.client] = Failure(task.round, task.client, reason)
        else:
            queues[node].append(task)
    return queues, failures

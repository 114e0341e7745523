"""The transport over Flower's grid: tasks out, updates in, in the order of the tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedmoe.config.components import for_nodes, told_to_nodes
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.system.digests import code_digest
from server.about import Expected
from server.messages import task_content
from server.nodes import Nodes
from server.post import Clock, Post
from server.round import Round
from server.settings import Settings, read_nodes

A = TypeVar("A")
R = TypeVar("R")


class GridTransport:
    """Clients on Flower's nodes; see `rounds.Transport`."""

    def __init__(
        self,
        grid: Grid,
        server: ServerSide,
        scorer: Scorer,
        settings: Settings,
        clock: Clock = time,
        places: dict[int, str] | None = None,
    ) -> None:
        """Prepare a run over a grid; nothing is sent yet.

        Args:
            grid: Flower's.
            server: the run.
            scorer: scores the global adapter in this process.
            settings: timeouts, and which node serves which clients.
            clock: tells the time, and waits.
            places: gets, for each client, the node that its task went to last.

        Raises:
            ConfigError: `settings.nodes` names clients or tiers that do not exist; a component
                exists in this process alone.
        """
        self.server, self.scorer, self.settings = server, scorer, settings
        self.places = {} if places is None else places
        self.code = code_digest(Path(__file__).parent.parent / "clients")
        self.experiment = for_nodes(server.setup.experiment)
        assigned = read_nodes(settings.nodes, server.members)
        components = told_to_nodes(server.setup.experiment)
        clients = len(server.facts.lengths)
        expected = Expected(self.code, clients, settings.allow_versions, assigned, components)
        self.nodes = Nodes(grid, Post(grid, clock), expected, settings)

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order.

        Raises:
            FedMoEError: too few nodes; a task that fails is an answer, not an error.
        """
        if tasks:
            self.nodes.wait()
            content, places = self._content, self.places
            yield from Round(tasks, self.nodes, self.server, self.settings, content, places).run()

    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Return `job(scorer, argument)` for each argument, in order, in this process."""
        return (job(self.scorer, argument) for argument in arguments)

    def lose_worker(self) -> None:
        """Do nothing: nodes are on other machines, and a killed client's task is not sent."""

    def close(self) -> None:
        """Do nothing."""

    def _content(self, task: Task) -> RecordDict:
        return task_content(pack_task(task), self.experiment, self.code, self.server.run_id)

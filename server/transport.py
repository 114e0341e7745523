"""The transport over Flower's grid: tasks out, updates in, in the order of the tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from logging import INFO
from pathlib import Path
from typing import TypeVar

from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from fedmoe.config.components import for_nodes, told_to_nodes
from fedmoe.data import Dataset
from fedmoe.messages.codec import pack_task, task_text
from fedmoe.messages.records import Failure, Message, Task, Update
from fedmoe.messages.scores import Scores
from fedmoe.runs.own_scores import read_scores
from fedmoe.runs.roster import is_federated
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.system.digests import code_digest, files_digest, template_digest
from fedmoe.system.files import expanded
from server.about import Expected
from server.masks import GridSteps
from server.messages import task_content
from server.nodes import Nodes
from server.post import Clock, Post
from server.private import log
from server.round import Exchange, Round
from server.settings import Settings, read_nodes, read_owners

OWNERS_OPEN = (
    "the run config's `nodes` is empty: a registered key speaks for the owner of its own name "
    "alone, and a node without one for whomever it says"
)
CLIENTS_OPEN = (
    "the run config's `nodes` is empty: a node whose key is registered gets no tasks, and one "
    "without a key may answer for any client"
)
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
        self.experiment = for_nodes(server.setup.for_clients)
        data, named = server.setup.experiment.data, is_federated(server.setup.experiment)
        assigned = {} if named else read_nodes(settings.nodes, server.members)
        owners = read_owners(settings.nodes, getattr(data, "clients", ())) if named else {}
        components = told_to_nodes(server.setup.experiment)
        self.data = data_told(server)
        clients = len(server.facts.lengths)
        expected = Expected(
            self.code,
            clients,
            settings.allow_versions,
            assigned,
            owners,
            components,
            self.data,
            file_digest(data),
            template_digest(server.setup.experiment.text.template),
        )
        self.nodes = Nodes(grid, Post(grid, clock), expected, settings)
        if not settings.nodes:
            log(INFO, OWNERS_OPEN if named else CLIENTS_OPEN)
        self.packed: dict[str, tuple[Task, Message]] = {}
        """By tier: the last task that was packed, and its message."""
        self.steps = GridSteps(self)
        """Asks clients for the steps of masked sums, where the experiment has them."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order.

        Raises:
            FedMoEError: too few nodes; a task that fails is an answer, not an error.
        """
        if tasks and self.server.setup.experiment.secure_aggregation:
            yield from self.steps.trained(tasks)
        elif tasks:
            self.nodes.wait()
            content, places = self.content, self.places
            yield from Round(tasks, self.nodes, self.server, self.settings, content, places).run()

    def score(self, tasks: Sequence[Task], split: str) -> Iterator[Scores | Failure]:
        """Yield what each task's client scores on its own rows, in order.

        Raises:
            FedMoEError: too few nodes; a client that gives no scores is an answer, not an error.
        """
        if tasks:
            self.nodes.wait()
            content = partial(self.content, split=split)
            exchange = Exchange(
                MessageType.EVALUATE, partial(read_scores, self.server, split=split)
            )
            settings, places = self.settings, self.places
            yield from Round(
                tasks, self.nodes, self.server, settings, content, places, exchange=exchange
            ).run()

    def present(self, wanted: Collection[str], least: int, seconds: float) -> Collection[str]:
        """Return the clients whose rows are on nodes that are there and fit.

        Waits for `num_nodes`, and at most so many seconds for those wanted and the least number.
        """
        self.nodes.wait()
        start = self.nodes.post.clock.monotonic()
        while True:
            there = self.nodes.clients()
            if {*wanted} <= {*there} and len(there) >= least:
                return there
            if self.nodes.post.clock.monotonic() - start >= seconds:
                return there
            answers = self.nodes.look()
            assert not answers, [item.letter for item in answers]

    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Return `job(scorer, argument)` for each argument, in order, in this process."""
        return (job(self.scorer, argument) for argument in arguments)

    def lose_worker(self) -> None:
        """Do nothing: nodes are on other machines, and a killed client's task is not sent."""

    def close(self) -> None:
        """Do nothing."""

    def content(
        self, task: Task, split: str = "", masks: str = "", packed: Message | None = None
    ) -> RecordDict:
        """Return a task as a request: to train, to score a split, or for a step of masked sums."""
        run, data = self.server.run_id, json.dumps(self.data)
        message = packed or self._packed(task)
        return task_content(message, self.experiment, self.code, run, data, split, masks)

    def _packed(self, task: Task) -> Message:
        """Return a task's message; those of a tier share the bytes of what they are sent."""
        before, message = self.packed.get(task.tier, (task, None))
        same = before.adapter is task.adapter and before.rescaler is task.rescaler
        if message is None or not same:
            message = pack_task(task)
            message = replace(message, buffer=bytes(message.buffer))  # as Flower's records hold it
            self.packed[task.tier] = task, message
        return replace(message, scalars=task_text(task))


def data_told(server: ServerSide) -> dict[str, str]:
    """Return what nodes are told of the data: their kind, place, and template."""
    data = server.setup.experiment.data
    told = {n: v for n in ("name", "path", "column") if (v := getattr(data, n, ""))}
    told["template"] = server.setup.experiment.text.template
    return told if is_federated(server.setup.experiment) else told | {"digest": server.facts.sha256}


def file_digest(data: Dataset) -> str:
    """Return a digest of the file that all share out; empty where data are in no such file."""
    path = getattr(data, "path", "")
    if not isinstance(path, str) or data.name == "federated" or not expanded(path).is_file():
        return ""
    return files_digest(expanded(path))

"""Which nodes are there, whether they run our code, and which client goes to which of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from logging import INFO, WARNING

from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedmoe.errors import FedMoEError, WireError
from server.messages import hello_content, read_clients
from server.post import Lost, Post

Held = Mapping[int, frozenset[int]]
"""By node: the clients whose data lies there; empty where any client's task will do."""


class Nodes:
    """Asks every node once who it is; one that answers wrongly gets no task in this run."""

    def __init__(self, grid: Grid, code: str, least: int, seconds: float) -> None:
        self.grid, self.code, self.least, self.seconds = grid, code, least, seconds
        self.post = Post(grid, seconds)
        self.held: dict[int, frozenset[int]] = {}
        self.refused: dict[int, str] = {}
        self.asked: set[int] = set()

    def ready(self) -> Held:
        """Wait until enough nodes are there and all of them have answered.

        Raises:
            FedMoEError: fewer than `least` after `seconds`.
        """
        end = time.monotonic() + self.seconds
        while True:
            present = set(self.grid.get_node_ids())
            for node in sorted(present - self.asked):
                self.asked.add(node)
                self.post.send(node, MessageType.QUERY, hello_content(self.code))
            for node, answer in self.post.arrived():
                self._learn(node, answer)
            held = {node: self.held[node] for node in sorted(present) if node in self.held}
            if len(held) >= self.least and not self.post.out:
                return held
            if time.monotonic() > end:
                raise FedMoEError(self._too_few(len(held)))

    def _learn(self, node: int, answer: RecordDict | Lost) -> None:
        try:
            if isinstance(answer, Lost):
                raise WireError(answer.reason)
            self.held[node] = read_clients(answer)
        except WireError as error:
            self.refused[node] = str(error)
            log(WARNING, "node %d gets no tasks: %s", node, error)
        else:
            log(INFO, "node %d is ready", node)

    def _too_few(self, found: int) -> str:
        reasons = "".join(f"\n  node {node}: {reason}" for node, reason in self.refused.items())
        return (
            f"{found} usable node(s) after {self.seconds:g} s; expected {self.least} or more: "
            f"start more `flower-supernode`s, or lower `num_nodes` in the run config{reasons}"
        )


def deal(client: int, held: Held) -> int | None:
    """The node that holds the client's data; else one that takes any, by the client's number."""
    owners = sorted(node for node, clients in held.items() if client in clients)
    takers = sorted(node for node, clients in held.items() if not clients)
    if owners:
        return owners[0]
    return takers[client % len(takers)] if takers else None

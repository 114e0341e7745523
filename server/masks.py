"""Masked sums over Flower's grid: five messages a round to each client, on one node each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from flwr.app import MessageType, RecordDict

from fedmoe.adapter import Adapter
from fedmoe.errors import WireError
from fedmoe.messages.codec import check_seal
from fedmoe.messages.records import Failure, Message, Task, Update, least_report
from fedmoe.privacy.masks.wire import Request, read_advert, read_refused, read_reveal, read_shares
from server.private import log
from server.round import Exchange, Round

if TYPE_CHECKING:
    from fedmoe.privacy.vector import Vector
    from server.transport import GridTransport

UNSIGNED = (
    "secure aggregation: %d of %d clients do not sign their keys, so that this server could invent "
    "neighbours of theirs: set signing_key and known_keys in their node configs"
)
SLOW = "a slow node may need longer to start its process: raise node_seconds in the run config"


class GridSteps:
    """Asks clients on nodes for steps of masked sums; see `runs.masked.Steps`.

    A client's keys are on the node that advertised them: no other can go on for it, and a task
    that the node has lost is not repeated, in this round.
    """

    def __init__(self, transport: GridTransport) -> None:
        self.transport = transport
        self.requests: Mapping[int, Request] = {}
        """By client: what the round's tasks bring with them."""
        self.near: dict[int, set[int]] = {}
        """By client: the neighbours whose shares it was given."""
        self.at: dict[int, int] = {}
        """By client: the node that has its keys."""
        self.warned = False

    def ask(
        self, tasks: Sequence[Task], requests: Mapping[int, Request]
    ) -> Iterator[Any | Failure]:
        """Yield what clients answer, in order, within `node_seconds` each."""
        if not tasks:
            return
        step, t = next(iter(requests.values())).step, self.transport
        if step == "advertise":
            t.nodes.wait()
            self.at = {}
        elif step == "open":
            self.near = {client: {*r.sealed} for client, r in requests.items()}
        exchange = Exchange(MessageType.TRAIN, partial(self._read, requests), step == "advertise")
        seconds = min(t.settings.task_seconds, t.settings.node_seconds)
        round_ = Round(
            tasks,
            t.nodes,
            t.server,
            replace(t.settings, task_seconds=seconds),
            partial(self._content, requests),
            t.places,
            exchange=exchange,
            pinned=self.at,
        )
        answers = [*round_.run()]
        if step == "advertise":
            self.at = dict(round_.sent_to)
            self._warn([a.signature for a in answers if not isinstance(a, Failure)])
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Failure) and answer.code == "late":
                answer = replace(answer, reason=f"{answer.reason} ({SLOW})")
            if isinstance(answer, Failure) and step == "reveal":
                log(
                    WARNING,
                    "round %d: %s revealed nothing: %s",
                    task.round,
                    task.who,
                    answer.reason,
                )
            yield answer

    def train(self, requests: Mapping[int, Request]) -> None:
        """Keep what the next tasks bring with them."""
        self.requests = {**requests}
        log(INFO, "%d clients have exchanged keys and train", len(requests))

    def trained(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield the masked vectors that tasks are answered with, in order."""
        t = self.transport
        yield from Round(
            tasks,
            t.nodes,
            t.server,
            t.settings,
            lambda task: t.content(task, masks=self.requests[task.client].text()),
            t.places,
            exchange=Exchange(MessageType.TRAIN, read_masked, repeats=False),
            pinned=self.at,
        ).run()

    def masked(self, vector: Vector, update: Update) -> np.ndarray:
        """Return the masked vector that came with an answer."""
        assert update.masked is not None
        return update.masked

    def _content(self, requests: Mapping[int, Request], task: Task) -> RecordDict:
        scalars = json.dumps({"round": task.round, "client": task.client, "name": task.name})
        masks = requests[task.client].text()
        return self.transport.content(task, masks=masks, packed=Message(scalars, b""))

    def _read(self, requests: Mapping[int, Request], message: Message, task: Task) -> Any:
        """Return a checked answer to a client's request.

        Raises:
            WireError: no client of ours sends it.
        """
        check_seal(message)
        request = requests[task.client]
        if request.step == "advertise":
            return read_advert(message.scalars)
        if request.step == "share":
            return read_shares(message.scalars, request.adverts)
        near = self.near[task.client]
        if request.step == "open":
            return read_refused(message.scalars, near)
        there = near & {*request.arrived}
        return read_reveal(message.scalars, there, near - there)

    def _warn(self, signatures: Sequence[bytes]) -> None:
        if (bare := signatures.count(b"")) and not self.warned:
            self.warned = True
            log(WARNING, UNSIGNED, bare, len(signatures))


def read_masked(message: Message, task: Task) -> Update:
    """Return a masked vector as an update that tells nothing but that it is there.

    Raises:
        WireError: it is damaged, or no vector; its length is the collector's to check.
    """
    check_seal(message)
    if message.scalars != "{}" or not message.buffer or len(message.buffer) % 8:
        raise WireError(
            f"a masked vector of {len(message.buffer)} bytes, with {message.scalars!s:.60}; "
            "expected integers of 8 bytes, and nothing beside them"
        )
    layout, nothing = replace(task.adapter.layout, entries=()), cast(Any, least_report())
    return Update(
        round=task.round,
        client=task.client,
        tier=task.tier,
        top_k=task.top_k,
        rescaler=task.rescaler,
        delta=Adapter(layout, torch.zeros(0)),
        counts=torch.zeros(layout.num_layers, layout.num_experts, dtype=torch.int64),
        **nothing,
        withheld=True,
        num_bytes=message.num_bytes,
        name=task.name,
        masked=np.frombuffer(message.buffer, "<u8"),
    )

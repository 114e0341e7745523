"""The kinds of message that cross a boundary: an honest one of each, and who receives it.

`simulations/fuzz.py` spoils them. To add a kind, yield it from `kinds`.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clients.about import about
from clients.worker_frames import HEAD, MAGIC, Order, read_header, receive
from fedmoe.adapter import Layout
from fedmoe.aggregation import Flame
from fedmoe.messages.codec import pack_task, unpack_task, unpack_update
from fedmoe.messages.records import Message, Task
from fedmoe.messages.rows import RowCounts
from fedmoe.messages.scores import Scores, pack_scores, unpack_scores
from fedmoe.rounds import ServerState, finish_round
from fedmoe.system.digests import files_digest
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.server import Handler, Server
from server.about import Expected
from server.messages import check_nonce, read_about, read_update
from simulations.bad_inputs import LIMITS, honest
from simulations.masked_crossings import masked_kinds


class Kind(NamedTuple):
    """An honest message of one kind, who receives it, and what must not change meanwhile."""

    values: dict[str, Any]
    """Travel as JSON."""
    buffer: bytes
    receive: Callable[[str, bytes], object]
    """Takes a message, or raises its refusal."""
    state: Callable[[], object] = lambda: 0
    """Returns what the receiver keeps."""


def kinds(folder: Path) -> Iterator[tuple[str, Kind]]:
    """Yield every kind by name; `folder` is that of a run, which the live page shows."""
    task, update = honest()
    sent, layout, kept = pack_task(task), task.adapter.layout, task.adapter.digest
    of = json.loads
    yield "task", Kind(of(sent.scalars), bytes(sent.buffer), partial(take_task, layout), kept)
    taking = partial(take_update, task)
    yield "update", Kind(of(update.scalars), bytes(update.buffer), taking, kept)
    rows, labels = RowCounts.of(train=9, test=4), {"lights": (4, 1.0)}
    scores = Scores(split="test", examples=4, tokens=9, score=1.0, labels=labels, rows=rows)
    yield "scores", Kind(of(pack_scores(scores, task).scalars), b"", partial(take_scores, task))
    expected, me = Expected("abc", 4), about({"name": "lab", "clients": "0,3"}) | {"code": "abc"}
    yield "greeting", Kind(me, b"", partial(take_greeting, expected), lambda: str(expected))
    yield "node's reply", Kind({"nonce": "n", "scalars": "{}", "checksum": 7}, bytes(8), take_reply)
    order = Order("rounds: 1", "data.path=é", "{}", 7, [3], "/state", 12.5, 1)
    yield "worker frame", Kind({"kind": "order", **asdict(order)}, bytes(8), take_frame)
    server = Server(WatchedFolder(folder), 0)
    page = {"method": "GET", "target": "/?run=a", "host": "localhost:80"}
    files = [*folder.iterdir()]
    yield "page request", Kind(page, b"", partial(show, server), lambda: files_digest(*files))
    server.server_close()
    yield from masked_kinds(Kind, task)


def named(text: str) -> dict[str, Any]:
    """Return the values of a text in JSON; the text itself as a reason where it is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {"reason": text}


def take_task(layout: Layout, text: str, data: bytes) -> None:
    """Read a task, as a client does."""
    unpack_task(Message(text, data), layout)


def take_update(task: Task, text: str, data: bytes) -> None:
    """Read an update, and step with it."""
    state = ServerState(0, task.adapter, {"low": task.rescaler})
    taken = unpack_update(Message(text, data), task.adapter.layout, task, limits=LIMITS)
    assert finish_round(state, Flame(), [taken]).adapter.flat.isfinite().all()


def take_scores(task: Task, text: str, data: bytes) -> None:
    """Read a client's scores."""
    bounds: Any = {"metrics": ("exact_match",), "most_examples": 10, "most_tokens": 64}
    unpack_scores(Message(text, data), task, "test", **bounds)


def take_greeting(expected: Expected, text: str, data: bytes) -> None:
    """Read a node's description, and use all of it."""
    node = expected.check(named(text))
    assert str(node)
    assert len(node.held) + len(node.own) < 10**6


def take_reply(text: str, data: bytes) -> None:
    """Read a reply in every way in which a server does."""
    config = ConfigRecord()
    for name, value in named(text).items():
        try:
            config[name] = value
        except (TypeError, ValueError):  # Flower carries no such value
            continue
    array = Array("uint8", (len(data),), "bytes", data)
    content = RecordDict({"config": config, "arrays": ArrayRecord({"buffer": array})})
    for read in (partial(check_nonce, nonce="n"), read_about, read_update):
        read(content)


def take_frame(text: str, data: bytes) -> None:
    """Receive a frame whose announced length may be wrong, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = text.encode(errors="surrogatepass")[:60_000]
        size = int.from_bytes(data[-8:], "big") if len(data) % 2 else len(data)
        ours.sendall(HEAD.pack(MAGIC, len(words), size) + words + data)
        ours.close()
        read_header(receive(theirs)[0], Order)


class Asked(io.BytesIO):
    """A connection whose other end has asked for a page, and hears nothing."""

    def makefile(self, *_: object) -> io.BytesIO:
        return self

    def settimeout(self, seconds: float) -> None:
        """Never wait."""

    def sendall(self, data: bytes) -> None:
        """Forget the answer."""


def show(server: Server, text: str, data: bytes) -> None:
    """Answer a request to the live page."""
    words = {"method": "GET", "target": "/", "host": "localhost", **named(text)}
    head = f"{words['method']} {words['target']} HTTP/1.1\r\nHost: {words['host']}\r\n\r\n"
    connection: Any = Asked(head.encode(errors="surrogatepass") + data)
    Handler(connection, ("127.0.0.1", 1), server)

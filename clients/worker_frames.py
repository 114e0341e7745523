"""The frames that pass over a worker's socket: a JSON header and raw bytes, nothing pickled.

A frame is `fedmoe/1`, the header's length (4 bytes, big-endian), the buffer's (8), the header, the
buffer. By the header's `kind`:
- `hello`: the worker's first words to every caller; see `Hello`
- `order`: the caller's task; see `Order`, with the task's buffer
- `done`: the packed update, with its buffer
- `reason`: why there is none, for the user to mend
- `error`: any other exception, with its traceback

`multiprocessing.connection` would save a few lines here, but it takes memory for a message as soon
as its length is announced, and waits without end in the middle of one.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from socket import socket
from typing import Any, TypeVar, get_origin, get_type_hints

from fedmoe.errors import FedMoEError

MAGIC = b"fedmoe/1"
HEAD = struct.Struct(f">{len(MAGIC)}sIQ")
MOST_HEADER_BYTES = 2**24
"""An experiment takes a few kilobytes."""
MOST_BUFFER_BYTES = 2**34
"""An adapter of rank 64 for OLMoE-1B-7B takes 2.4e9."""
CHUNK_BYTES = 2**20
RANGES = {
    "pid": (2, 2**31),
    "loads": (0, 2**31),
    "checksum": (0, 2**63 - 1),
    "deadline_seconds": (0, 1e9),
    "fewer": (0, 2**16),
    "least_noise": (0, 1e9),
}
"""Least and most of each number in a record: a caller may kill the process of a `pid`."""


class FrameError(FedMoEError):
    """Bytes that are no frame of ours."""


class Gone(Exception):
    """The other end closed the connection, or died."""


@dataclass(frozen=True)
class Hello:
    """A worker's greeting, before it is asked anything."""

    code: str
    """A digest of the code that it runs; see `fedmoe/system/digests.py`."""
    pid: int
    loads: int
    """Number of times it has loaded a model."""


@dataclass(frozen=True)
class Order:
    """A task, and all that a node adds to it."""

    experiment: str
    """Resolved, as YAML."""
    overrides: str
    """This machine's, dotted."""
    scalars: str
    """The task's."""
    checksum: int | None
    """The task's checksum, if it has one."""
    own: list[int]
    """The clients whose data this node holds; empty if it takes any client's task."""
    state: str
    """The folder for what clients keep between rounds; empty if there is none."""
    deadline_seconds: float | int | None = None
    """From the task's sending to the update's arrival, as the server set it; it counts where the
    node plans for itself."""
    fewer: int = 0
    """Experts to leave out of the task: a worker was killed for memory each time."""
    allow: list = field(default_factory=list)
    """Modules that the node's own config allows an experiment to name; see `fedmoe.section`."""
    data: str = ""
    """Where this node has its clients' own rows, as its config says; see `own_rows`."""
    digest: str = ""
    """The server's digest of the data that all share out; empty if clients hold their own rows."""
    report: list = field(default_factory=list)
    """What this node reports of its clients beside what training needs."""
    split: str = ""
    """The split of its own rows that the client scores; empty if it trains."""
    masks: str = ""
    """The step of masked sums that it makes, as JSON; empty where nothing is masked."""
    key: str = ""
    """The file of the key by which this node signs its clients' keys; empty if it signs nothing."""
    known: str = ""
    """The file with all owners' public keys, where it signs."""
    home: str = ""
    """The node's `state`, where it keeps what hides its clients' names."""
    least_noise: float = 0.0
    """The noise multiplier without which it sends nothing, as its config says."""


T = TypeVar("T", Hello, Order)


def header_of(record: Hello | Order) -> dict[str, Any]:
    """Return a record as a header."""
    return {"kind": type(record).__name__.lower(), **asdict(record)}


def read_header(header: dict[str, Any], record: type[T]) -> T:
    """Return the record in a header.

    Raises:
        FrameError: it is of another kind, or a value is missing, of another type or out of range.
    """
    kind, hints = record.__name__.lower(), get_type_hints(record)
    types = {name: list if get_origin(of) is list else of for name, of in hints.items()}
    if (found := header.get("kind")) != kind:
        raise FrameError(f"a frame of kind {str(found)[:40]!r} came; expected {kind!r}")
    bad = [name for name, of in types.items() if not _fits(name, header.get(name, ...), of)]
    if bad:
        raise FrameError(f"a frame of kind {kind!r} lacks valid values of {', '.join(bad)}")
    return record(**{name: header[name] for name in types})


def _fits(name: str, value: Any, of: Any) -> bool:
    if name not in RANGES or value is None:
        return isinstance(value, of)
    least, most = RANGES[name]
    return isinstance(value, of) and not isinstance(value, bool) and least <= value <= most


def send(connection: socket, header: dict[str, Any], buffer: bytes | memoryview = b"") -> None:
    """Send one frame.

    Raises:
        FrameError: it is larger than a receiver takes.
        Gone: nobody is there to read it, or not in time.
    """
    words = json.dumps(header).encode()
    _check_sizes(len(words), len(buffer))
    try:
        connection.sendall(HEAD.pack(MAGIC, len(words), len(buffer)) + words)
        if len(buffer):  # else the receiver, who has all, may have answered and closed already
            connection.sendall(buffer)
    except OSError as error:
        raise Gone(str(error)) from error


def receive(connection: socket) -> tuple[dict[str, Any], memoryview]:
    """Return the header and the buffer of one frame; memory grows only with what has arrived.

    Raises:
        FrameError: it is not one of ours, or larger than anything that we send.
        Gone: the other end closed or died first.
        TimeoutError: nothing came for as long as the connection waits.
    """
    magic, header_bytes, buffer_bytes = HEAD.unpack(_exactly(connection, HEAD.size))
    if magic != MAGIC:
        raise FrameError(f"a frame starts with {magic!r}; expected {MAGIC!r}")
    _check_sizes(header_bytes, buffer_bytes)
    try:
        header = json.loads(_exactly(connection, header_bytes))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's header is not JSON: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise FrameError("a frame's header is not a JSON object")
    return header, memoryview(_exactly(connection, buffer_bytes))


def _check_sizes(header_bytes: int, buffer_bytes: int) -> None:
    if header_bytes > MOST_HEADER_BYTES or buffer_bytes > MOST_BUFFER_BYTES:
        raise FrameError(
            f"a frame has a header of {header_bytes:,} and a buffer of {buffer_bytes:,} bytes; at "
            f"most {MOST_HEADER_BYTES:,} and {MOST_BUFFER_BYTES:,} are taken"
        )


def _exactly(connection: socket, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        try:
            part = connection.recv(min(size - len(data), CHUNK_BYTES))
        except ConnectionError as error:
            raise Gone(str(error)) from error
        if not part:
            raise Gone("closed")
        data += part
    return data

"""Task and Update as one flat byte buffer and a few scalars, and the checks at the door.

Flower spends seconds on thousands of tensors and milliseconds on one buffer of the same bytes, so
a message is `scalars` (JSON) and `buffer`, little-endian:
- a task's: the adapter, float32 in layout order; the rescaler, float32
- an update's: the counts, int64; the choices that went to merged experts, int64, where a client
  merges those that it leaves out; the rescaler; the values of all shared parts and of the experts
  with a count above 0, in layout order, as `compression` writes them

Nothing is pickled. Everything that arrives is checked before a value of it is used; how long an
update must be follows from its counts, which are checked first.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import WireError
from fedmoe.messages.compression import Compression, NoCompression
from fedmoe.messages.compression.parts import all_parts, carried, gather, num_values, scatter
from fedmoe.messages.validation import LIMITS, Limits, check_counts, check_scalars, check_values

MOST_SCALAR_BYTES = 512
"""What the scalars of a message take at most, but for very long names of tiers."""
MOST_JSON_CHARACTERS = 2**20
"""Scalars longer than this are not parsed, for lists in lists take many times the memory of their
text. An honest message's are a few hundred characters."""
LOSSLESS = NoCompression()


@dataclass(frozen=True, eq=False)
class Task:
    """What a client is sent: one whole local round, repeatable from these values alone."""

    round: int
    client: int
    tier: str
    top_k: int
    rescaler: Tensor
    """float32 (layers,): the tier's factors on each MoE layer's output."""
    adapter: Adapter


@dataclass(frozen=True, eq=False)
class Update:
    """What a client sends back."""

    round: int
    client: int
    tier: str
    top_k: int
    rescaler: Tensor
    delta: Adapter
    """Local minus global adapter; zero for experts that no token reached."""
    counts: Tensor
    """int64 (layers, experts): tokens routed to each expert in local training."""
    examples: int
    """Training examples the client holds."""
    tokens: int
    """Tokens that passed through the model in training, padding excluded."""
    steps: int
    loss_before: float
    loss_after: float
    seconds: float
    peak_bytes: int
    num_bytes: int = 0
    """Size of the message that it came in; 0 before it is sent."""
    merged: Tensor | None = None
    """int64 (layers,): choices that went to the expert merged of those left out; None where there
    is none."""


@dataclass(frozen=True)
class Failure:
    """A client whose round did not arrive or was refused, and why."""

    round: int
    client: int
    reason: str
    code: str = "failed"
    """`failed` (the client could not), `late` (no answer in time), `busy` (its nodes are at work on
    another task), or a `WireError`'s code."""


@dataclass(frozen=True)
class Message:
    """The packed form of a task or an update."""

    scalars: str
    """JSON."""
    buffer: bytes | memoryview
    """An update's values are read in place where it can be written to, else from a copy."""
    crc32: int | None = None
    """Of both, where the message crosses a network; see `sealed`."""

    @property
    def num_bytes(self) -> int:
        return len(self.scalars.encode()) + len(self.buffer)


TASK_SCALARS: dict[str, type] = {"round": int, "client": int, "tier": str, "top_k": int}
UPDATE_SCALARS: dict[str, type] = {
    **TASK_SCALARS,
    "examples": int,
    "tokens": int,
    "steps": int,
    "loss_before": float,
    "loss_after": float,
    "seconds": float,
    "peak_bytes": int,
}


def pack_task(task: Task) -> Message:
    """A task as a message."""
    values = task.adapter.flat.detach().contiguous().numpy()
    pieces = [values.astype("<f4", copy=False), _floats(task.rescaler)]
    buffer = b"".join([piece.data for piece in pieces])
    return Message(_words(task, TASK_SCALARS, task.adapter.layout), buffer)


def task_num_bytes(task: Task) -> int:
    """The size of a task's message, without making it."""
    layout = task.adapter.layout
    words = _words(task, TASK_SCALARS, layout)
    return len(words.encode()) + 4 * (layout.size + layout.num_layers)


def most_bytes(
    task: Layout, update: Layout, compression: Compression, merges: bool = False
) -> tuple[int, int]:
    """The most that a task's message can take, and an update's, in which all experts were used."""
    down = 4 * (task.size + task.num_layers)
    up = _head_bytes(update, merges)
    up += compression.num_bytes(all_parts(update)) if update.size else 0
    return down + MOST_SCALAR_BYTES, up + MOST_SCALAR_BYTES


def pack_update(update: Update, compression: Compression = LOSSLESS) -> Message:
    """An update as a message, without the rows of experts that no token reached.

    Those rows must be zero; see `adapter.keep_untouched`.

    Raises:
        WireError: a value is not finite, which only `none` and `bf16` can write down.
    """
    layout, counts = update.delta.layout, update.counts.numpy()
    flat = update.delta.flat.detach().contiguous().numpy()
    silent = update.counts == 0
    for entry, view in layout.views(update.delta.flat) if silent.any() else ():
        moved = entry.layer is not None and view[silent[entry.layer]].any()
        assert not moved, f"{entry.name}: a delta where no token was routed"
    parts = carried(layout, counts)
    values = gather(flat, parts)
    pieces = [counts.astype("<i8", copy=False).reshape(-1)]
    pieces += [] if update.merged is None else [update.merged.numpy().astype("<i8", copy=False)]
    pieces.append(_floats(update.rescaler))
    pieces += compression.encode(values, parts) if values.size else []
    # numpy asks Linux for huge pages: 6 MB are first touched in a third of a bytearray's time.
    buffer = np.concatenate([piece.view(np.uint8) for piece in pieces])
    return Message(_words(update, UPDATE_SCALARS, layout), buffer.data)


def sealed(message: Message) -> Message:
    """The message with a checksum, by which the door knows what was damaged on its way."""
    return replace(message, crc32=_crc32(message))


def tier_of(message: Message) -> str:
    """The tier that a task's message names, not checked: it tells which layout to expect."""
    try:
        return str(json.loads(message.scalars)["tier"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WireError(f"scalars name no tier: {error!r}") from error


def unpack_task(message: Message, layout: Layout) -> Task:
    """The task in a message; WireError says what is wrong with it."""
    _check_seal(message)
    scalars = _scalars(message, TASK_SCALARS, layout)
    _check_size(message, 4 * (layout.size + layout.num_layers))
    flat = _tensor(message, "<f4", layout.size, 0)
    rescaler = _tensor(message, "<f4", layout.num_layers, 4 * layout.size)
    if not 1 <= scalars["top_k"] <= layout.num_experts:
        raise WireError(f"top_k is {scalars['top_k']}; expected 1 to {layout.num_experts}")
    if not (flat.isfinite().all() and rescaler.isfinite().all()):
        raise WireError("adapter or rescaler is not finite")
    return Task(**scalars, rescaler=rescaler, adapter=Adapter(layout, flat))


def unpack_update(
    message: Message,
    layout: Layout,
    task: Task,
    compression: Compression = LOSSLESS,
    *,
    learns_rescaler: bool = False,
    limits: Limits = LIMITS,
) -> Update:
    """The update in a message, checked against the task it answers; see `check_update`.

    Raises:
        WireError: damaged on its way; another layout, size, round, client or budget; a value that
            is not finite or is absurdly large; counts that are negative or do not sum to
            `tokens * top_k` in a layer, merged choices included, or to what `limits` says in its
            place.
    """
    _check_seal(message)
    scalars = _scalars(message, UPDATE_SCALARS, layout)
    check_scalars(scalars, {name: getattr(task, name) for name in TASK_SCALARS}, limits)
    head = _head_bytes(layout, limits.merges)
    if len(message.buffer) < head:
        raise WireError(f"buffer of {len(message.buffer)} bytes; expected {head} or more", "size")
    num_counts = layout.num_layers * layout.num_experts
    counts = _tensor(message, "<i8", num_counts, 0).view(layout.num_layers, layout.num_experts)
    merged = _tensor(message, "<i8", layout.num_layers, 8 * num_counts) if limits.merges else None
    check_counts(counts, scalars["tokens"], scalars["top_k"], limits, merged)
    parts = carried(layout, counts.numpy())
    _check_size(message, head + compression.num_bytes(parts))
    rescaler = _tensor(message, "<f4", layout.num_layers, head - 4 * layout.num_layers)
    body = memoryview(message.buffer)[head:]
    values = compression.decode(body, parts) if num_values(parts) else np.empty(0, np.float32)
    delta = Adapter(layout, torch.from_numpy(scatter(values, parts, layout.size)))
    check_values(delta.flat, rescaler, task.rescaler, learns_rescaler, limits)
    return Update(
        **scalars,
        rescaler=rescaler,
        delta=delta,
        counts=counts,
        num_bytes=message.num_bytes,
        merged=merged,
    )


def _words(source: Task | Update, names: dict[str, type], layout: Layout) -> str:
    """The scalars of a message."""
    return json.dumps({name: getattr(source, name) for name in names} | {"layout": layout.digest})


def _floats(values: Tensor) -> np.ndarray:
    return values.detach().float().contiguous().numpy().astype("<f4", copy=False)


def _head_bytes(layout: Layout, merges: bool = False) -> int:
    """The counts and the rescaler of an update."""
    return 8 * layout.num_layers * (layout.num_experts + merges) + 4 * layout.num_layers


def _scalars(message: Message, names: dict[str, type], layout: Layout) -> dict[str, Any]:
    """The message's scalars, every one present, of its type and finite, and no other."""
    if (length := len(message.scalars)) > MOST_JSON_CHARACTERS:
        raise WireError(
            f"scalars of {length} characters; expected at most {MOST_JSON_CHARACTERS}", "size"
        )
    try:
        scalars = json.loads(message.scalars)
    except (ValueError, RecursionError) as error:
        raise WireError(f"scalars are not JSON: {error}") from error
    if not isinstance(scalars, dict) or set(scalars) != {*names, "layout"}:
        found = sorted(scalars) if isinstance(scalars, dict) else type(scalars).__name__
        raise WireError(f"scalars are {found}; expected {sorted({*names, 'layout'})}")
    if (digest := scalars.pop("layout")) != layout.digest:
        raise WireError(
            f"adapter layout {digest!r}; expected {layout.digest!r}: both sides need the same "
            "model, rank, alpha and adapted parts",
            "layout",
        )
    for name, kind in names.items():
        value = scalars[name]
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = scalars[name] = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise WireError(f"{name} is {value!r}; expected a finite {kind.__name__}", "scalars")
    return scalars


def _crc32(message: Message) -> int:
    return zlib.crc32(message.buffer, zlib.crc32(message.scalars.encode()))


def _check_seal(message: Message) -> None:
    if message.crc32 is not None and _crc32(message) != message.crc32:
        # Without the sums: they are over wall times, too, and a ledger is to be repeatable.
        raise WireError("its checksum is not the sender's: damaged on its way", "damaged")


def _check_size(message: Message, expected: int) -> None:
    if len(message.buffer) != expected:
        raise WireError(f"buffer of {len(message.buffer)} bytes; expected {expected}", "size")


def _tensor(message: Message, dtype: str, size: int, start: int) -> Tensor:
    """A copy of `size` numbers of the buffer, from byte `start` on."""
    part = np.frombuffer(message.buffer, dtype, size, start)
    return torch.from_numpy(part.astype(part.dtype.newbyteorder("=")))

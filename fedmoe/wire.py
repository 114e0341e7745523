"""Task and Update as one flat byte buffer and a few scalars, and the checks at the door.

Flower spends seconds on thousands of tensors and milliseconds on one buffer of the same bytes, so
a message is `scalars` (JSON) and `buffer` (little-endian float32 and int64, in layout order).
Nothing is pickled. Everything that arrives is checked before a value of it is used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import WireError

LARGEST_DELTA = 1e4
"""A local change of one weight beyond this is damage, not learning."""


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


@dataclass(frozen=True)
class Failure:
    """A client whose round did not arrive or was refused, and why."""

    round: int
    client: int
    reason: str


@dataclass(frozen=True)
class Message:
    """The packed form of a task or an update."""

    scalars: str
    """JSON."""
    buffer: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.scalars.encode()) + len(self.buffer)


TASK_SCALARS: dict[str, type] = {"round": int, "client": int, "tier": str, "top_k": int}
UPDATE_SCALARS: dict[str, type] = {
    **TASK_SCALARS, "examples": int, "tokens": int, "steps": int, "loss_before": float,
    "loss_after": float, "seconds": float, "peak_bytes": int,
}  # fmt: skip


def pack_task(task: Task) -> Message:
    """A task as a message."""
    return _pack(task, TASK_SCALARS, task.adapter, [task.rescaler.float()])


def pack_update(update: Update) -> Message:
    """An update as a message."""
    return _pack(update, UPDATE_SCALARS, update.delta, [update.rescaler.float(), update.counts])


def unpack_task(message: Message, layout: Layout) -> Task:
    """The task in a message; WireError says what is wrong with it."""
    scalars = _scalars(message, TASK_SCALARS, layout)
    flat, rescaler = _tensors(message, [layout.size, layout.num_layers], num_counts=0)
    if not 1 <= scalars["top_k"] <= layout.num_experts:
        raise WireError(f"top_k is {scalars['top_k']}; expected 1 to {layout.num_experts}")
    if not (flat.isfinite().all() and rescaler.isfinite().all()):
        raise WireError("adapter or rescaler is not finite")
    return Task(**scalars, rescaler=rescaler, adapter=Adapter(layout, flat))


def unpack_update(message: Message, layout: Layout, task: Task) -> Update:
    """The update in a message, checked against the task it answers.

    Raises:
        WireError: another layout, size, round, client or budget; a value that is not finite or is
            absurdly large; counts that are negative or do not sum to `tokens * top_k` in a layer.
    """
    scalars = _scalars(message, UPDATE_SCALARS, layout)
    flat, rescaler, counts = _tensors(
        message, [layout.size, layout.num_layers], layout.num_layers * layout.num_experts
    )
    counts = counts.view(layout.num_layers, layout.num_experts)
    update = Update(**scalars, rescaler=rescaler, delta=Adapter(layout, flat), counts=counts)
    check_update(update, task)
    return update


def check_update(update: Update, task: Task) -> None:
    """Refuse an update that does not answer `task` or that no honest client could send."""
    for name in TASK_SCALARS:
        if getattr(update, name) != getattr(task, name):
            raise WireError(
                f"update for {name} {getattr(update, name)!r}; its task has {getattr(task, name)!r}"
            )
    largest = update.delta.flat.abs().max().item() if update.delta.flat.numel() else 0.0
    if not largest <= LARGEST_DELTA:
        raise WireError(
            f"delta has a value of {largest}; expected finite, at most {LARGEST_DELTA:g}"
        )
    if not (update.rescaler.abs() <= LARGEST_DELTA).all():
        raise WireError(
            f"rescaler is {update.rescaler.tolist()}; expected finite, at most {LARGEST_DELTA:g}"
        )
    for name in ("loss_before", "loss_after", "seconds"):
        if not math.isfinite(value := getattr(update, name)):
            raise WireError(f"{name} is {value}; expected a finite float")
    if update.examples < 1 or update.tokens < 1 or update.steps < 1:
        raise WireError(
            f"{update.examples} examples, {update.tokens} tokens, {update.steps} steps; "
            "expected 1 or more"
        )
    if max(update.examples, update.steps) > 2**40 or update.tokens > 2**50:
        raise WireError(
            f"{update.examples} examples, {update.tokens} tokens, {update.steps} steps "
            "is not believable"
        )
    if (update.counts < 0).any():
        raise WireError(
            f"a count of {update.counts.min().item()} routed tokens; expected 0 or more"
        )
    # Also keeps the sums below from wrapping round to the right number.
    if (update.counts > update.tokens).any():
        raise WireError(
            f"a count of {update.counts.max().item()}; {update.tokens} tokens can reach an expert"
        )
    routed = update.counts.sum(1)
    if (routed != update.tokens * update.top_k).any():
        raise WireError(
            f"routed tokens per layer are {routed.tolist()}; expected tokens * top_k = "
            f"{update.tokens} * {update.top_k} in each"
        )


def _pack(
    source: Task | Update, names: dict[str, type], adapter: Adapter, rest: list[Tensor]
) -> Message:
    scalars = {name: getattr(source, name) for name in names} | {"layout": adapter.layout.digest}
    parts = [t.detach().contiguous().numpy().reshape(-1) for t in (adapter.flat, *rest)]
    little = [p.astype(p.dtype.newbyteorder("<"), copy=False) for p in parts]
    return Message(json.dumps(scalars), b"".join(p.tobytes() for p in little))


def _scalars(message: Message, names: dict[str, type], layout: Layout) -> dict[str, Any]:
    """The message's scalars, every one present, of its type and finite, and no other."""
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
            "model, rank, alpha and adapted parts"
        )
    for name, kind in names.items():
        value = scalars[name]
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = scalars[name] = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise WireError(f"{name} is {value!r}; expected a finite {kind.__name__}")
    return scalars


def _tensors(message: Message, num_floats: list[int], num_counts: int) -> tuple[Tensor, ...]:
    """Float32 tensors of the given sizes, then int64 counts; sizes are checked before decoding."""
    expected = 4 * sum(num_floats) + 8 * num_counts
    if len(message.buffer) != expected:
        raise WireError(f"buffer of {len(message.buffer)} bytes; expected {expected}")
    parts, start = [], 0
    for size in num_floats:
        part = np.frombuffer(message.buffer, "<f4", size, start).astype(np.float32)
        parts.append(torch.from_numpy(part))
        start += 4 * size
    if num_counts:
        counts = np.frombuffer(message.buffer, "<i8", num_counts, start).astype(np.int64)
        parts.append(torch.from_numpy(counts))
    return tuple(parts)

"""Task and Update as one flat byte buffer and a few scalars.

Flower spends seconds on thousands of tensors and milliseconds on one buffer of the same bytes, so
a message is `scalars` (JSON) and `buffer`, little-endian:
- of a task: the adapter, float32 in layout order, without the rank components `zeros` (first, and
  end) if its scalars name such, which are zero in all tensors; the rescaler, float32
- of an update: the counts, int64; the choices of merged experts, int64, if the client merges the
  experts that it leaves out; the rescaler; the values of all shared parts and of the experts with
  a count above 0, in layout order, as `compression` writes them

Nothing is pickled. Every value is checked before it is used: the counts first, because the length
of an update follows from them.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.adapter import BLOCK_VALUES, Adapter, Layout, largest
from fedmoe.errors import WireError
from fedmoe.messages.compression import Compression, NoCompression
from fedmoe.messages.compression.parts import all_parts, carried, gather, num_values, scatter
from fedmoe.messages.records import CLIENT_FIELDS, Message, Task, Update
from fedmoe.messages.validation import (
    LIMITS,
    Limits,
    check_counts,
    check_metrics,
    check_rows,
    check_scalars,
    check_values,
    check_zeros,
)
from fedmoe.messages.zeros import narrowed, restored, without, zero_components
from fedmoe.system.checksums import checksum

MOST_SCALAR_BYTES = 512
"""Bound on the scalars of a message without own metrics, unless a tier has a very long name."""
MEASURED = 40
"""Characters that hold any wall time and any peak of memory."""
MOST_METRIC_BYTES = 96
"""Bound on what each own metric adds to an update's scalars."""
MOST_JSON_CHARACTERS = 2**20
"""Longer scalars are not parsed: nested lists take many times the memory of their text. Honest
scalars have a few hundred characters."""
LOSSLESS = NoCompression()

TASK_SCALARS: dict[str, type] = {
    "round": int,
    "client": int,
    "tier": str,
    "top_k": int,
    "name": str,
}
UPDATE_SCALARS: dict[str, type] = TASK_SCALARS | {f.name: f.type for f in CLIENT_FIELDS}


def pack_task(task: Task) -> Message:
    """Return a task as a message.

    >>> from fedmoe.adapter import Adapter, Layout
    >>> layout = Layout.of([("experts.A", (4, 2, 3), 0)], 1, num_experts=4, rank=2, alpha=4.0)
    >>> adapter = Adapter(layout, torch.ones(layout.size))
    >>> message = pack_task(Task(1, 0, "low", 2, torch.ones(1), adapter))
    >>> len(message.buffer), unpack_task(message, layout).tier
    (100, 'low')
    """
    zeros = zero_components(task.adapter)
    buffer = np.concatenate([_floats(without(task.adapter, zeros)), _floats(task.rescaler)])
    buffer.flags.writeable = False  # it is sent to all clients of a tier
    return Message(_task_json(task, zeros), buffer.view(np.uint8).data)


def task_text(task: Task) -> str:
    """Return the scalars of a task's message, which alone differ between clients of one tier."""
    return _task_json(task, zero_components(task.adapter))


def task_num_bytes(task: Task) -> int:
    """Return the size of a task's message, without making it."""
    zeros = zero_components(task.adapter)
    size = narrowed(task.adapter.layout, zeros).size + task.adapter.layout.num_layers
    return len(_task_json(task, zeros).encode()) + 4 * size


def most_bytes(
    task: Layout, update: Layout, compression: Compression, merges: bool = False
) -> tuple[int, int]:
    """Return the largest size of a task's message, and of an update that used all experts.

    Each own metric of an update adds at most `MOST_METRIC_BYTES`.
    """
    down = 4 * (task.size + task.num_layers)
    up = _head_bytes(update, merges)
    up += compression.num_bytes(all_parts(update)) if update.size else 0
    return down + MOST_SCALAR_BYTES, up + MOST_SCALAR_BYTES


def pack_update(update: Update, compression: Compression = LOSSLESS) -> Message:
    """Return an update as a message, without the rows of experts that no token reached.

    Those rows must be zero; see `adapter.keep_untouched`.

    Raises:
        WireError: a value is not finite, and `compression` is not `none` or `bf16`, which can
            represent it.
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
    buffer = np.concatenate([piece.view(np.uint8) for piece in pieces])
    text = _json(update_scalars(update), layout)
    return Message(text.ljust(len(text) - measured_length(update) + MEASURED), buffer.data)


def measured_length(update: Update) -> int:
    """Return the characters of what differs between equal runs; the message pads it to one size."""
    return sum(len(json.dumps(value)) for value in (update.seconds, update.peak_bytes))


def update_scalars(update: Update) -> dict[str, Any]:
    """Return the scalars of an update's message, all but the layout's digest."""
    return _task_scalars(update) | update.as_json()


def sealed(message: Message) -> Message:
    """Return the message with a checksum, which shows damage in transit."""
    return replace(message, checksum=_checksum(message))


def tier_of(message: Message) -> str:
    """Return the tier that a task's message names, unchecked: it tells which layout to expect."""
    try:
        return str(json.loads(message.scalars[:MOST_JSON_CHARACTERS])["tier"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WireError(f"scalars name no tier: {error!r}") from error


def examples_of(message: Message) -> int:
    """Return the examples that an update's message claims, unchecked; 0 if that is no number."""
    try:
        found = json.loads(message.scalars[:MOST_JSON_CHARACTERS])["examples"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return 0
    return found if type(found) is int else 0


def unpack_task(message: Message, layout: Layout) -> Task:
    """Return the task in a message, checked.

    Raises:
        WireError: damaged in transit, of another layout or size, or with a value out of range.
    """
    whole = _look(message, 0, layout.size)
    scalars = _scalars(message, TASK_SCALARS, layout, optional={"zeros"})
    zeros = check_zeros(scalars.pop("zeros", None), layout.rank)
    size = narrowed(layout, zeros).size
    _check_size(message, 4 * (size + layout.num_layers))
    if zeros or whole is None:
        flat = _tensor(message, "<f4", size, 0)
        most = largest(flat)
    else:
        flat, most = whole
    rescaler = _tensor(message, "<f4", layout.num_layers, 4 * size)
    if not 1 <= scalars["top_k"] <= layout.num_experts:
        raise WireError(f"top_k is {scalars['top_k']}; expected 1 to {layout.num_experts}")
    if not (math.isfinite(most) and math.isfinite(largest(rescaler))):
        raise WireError("adapter or rescaler is not finite")
    return Task(**scalars, rescaler=rescaler, adapter=restored(flat, layout, zeros))


def unpack_update(
    message: Message,
    layout: Layout,
    task: Task,
    compression: Compression = LOSSLESS,
    *,
    learns_rescaler: bool = False,
    limits: Limits = LIMITS,
) -> Update:
    """Return the update in a message, checked against the task that it answers.

    Raises:
        WireError: damaged in transit; another layout, size, round, client or budget; a value that
            is not finite or is absurdly large; counts that are negative or do not sum to
            `tokens * top_k` in a layer, merged choices included, or to what `limits` says instead.
    """
    head = _head_bytes(layout, limits.merges)
    plain = type(compression) is NoCompression
    whole = _look(message, head, layout.size) if plain else check_seal(message)
    scalars = _scalars(message, UPDATE_SCALARS, layout, optional={"metrics", "rows"})
    metrics = check_metrics(scalars.pop("metrics", {}))
    rows = check_rows(scalars.pop("rows", None), scalars["examples"])
    check_scalars(scalars, _task_scalars(task), limits)
    if len(message.buffer) < head:
        raise WireError(f"buffer of {len(message.buffer)} bytes; expected {head} or more", "size")
    num_counts = layout.num_layers * layout.num_experts
    counts = _tensor(message, "<i8", num_counts, 0).view(layout.num_layers, layout.num_experts)
    merged = _tensor(message, "<i8", layout.num_layers, 8 * num_counts) if limits.merges else None
    check_counts(counts, scalars["tokens"], scalars["top_k"], limits, merged)
    parts = carried(layout, counts.numpy())
    _check_size(message, head + compression.num_bytes(parts))
    rescaler = _tensor(message, "<f4", layout.num_layers, head - 4 * layout.num_layers)
    if whole is None:
        body = memoryview(message.buffer)[head:]
        values = compression.decode(body, parts) if num_values(parts) else np.empty(0, np.float32)
        whole = torch.from_numpy(scatter(values, parts, layout.size)), None
    delta = Adapter(layout, whole[0])
    check_values(delta.flat, rescaler, task.rescaler, learns_rescaler, limits, whole[1])
    return Update(
        **scalars,
        rescaler=rescaler,
        delta=delta,
        counts=counts,
        num_bytes=message.num_bytes,
        merged=merged,
        metrics=metrics,
        rows=rows,
    )


def _task_scalars(source: Task | Update) -> dict[str, Any]:
    return {name: getattr(source, name) for name in TASK_SCALARS}


def _task_json(task: Task, zeros: range) -> str:
    told = {"zeros": [zeros.start, zeros.stop]} if zeros else {}
    return _json(_task_scalars(task) | told, task.adapter.layout)


def _json(scalars: dict[str, Any], layout: Layout) -> str:
    return json.dumps(scalars | {"layout": layout.digest})


def _floats(values: Tensor) -> np.ndarray:
    return values.detach().float().contiguous().numpy().astype("<f4", copy=False)


def _head_bytes(layout: Layout, merges: bool = False) -> int:
    """Size of an update's counts and rescaler."""
    return 8 * layout.num_layers * (layout.num_experts + merges) + 4 * layout.num_layers


def _scalars(
    message: Message, names: dict[str, type], layout: Layout, optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """Return the message's scalars: all of `names`, finite and of their types, and no others."""
    if (length := len(message.scalars)) > MOST_JSON_CHARACTERS:
        raise WireError(
            f"scalars of {length} characters; expected at most {MOST_JSON_CHARACTERS}", "size"
        )
    try:
        scalars = json.loads(message.scalars, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise WireError(f"scalars are not JSON: {error}") from error
    if not isinstance(scalars, dict) or {*scalars} - optional != {*names, "layout"}:
        found = sorted(scalars) if isinstance(scalars, dict) else type(scalars).__name__
        raise WireError(f"scalars are {found!s:.500}; expected {sorted({*names, 'layout'})}")
    if (digest := scalars.pop("layout")) != layout.digest:
        raise WireError(
            f"adapter layout {digest!r:.80}; expected {layout.digest!r}: both sides need the same "
            "model, rank, alpha and adapted parts",
            "layout",
        )
    for name, kind in names.items():
        value = scalars[name]
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = scalars[name] = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise WireError(
                f"{name} is {value!r:.80}; expected a finite {kind.__name__}", "scalars"
            )
    return scalars


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise WireError("scalars have two values of one name; expected one", "scalars")
    return found


def _checksum(message: Message, buffer: Iterable[Any] | None = None) -> int:
    parts = chain([message.scalars.encode()], [message.buffer] if buffer is None else buffer)
    return int(checksum(parts), 16) >> 65  # positive, of 63 bits, as Flower's records hold


def check_seal(message: Message, buffer: Iterable[Any] | None = None) -> None:
    """Refuse a message that its checksum shows to be damaged; `buffer` yields its own in parts."""
    if message.checksum is not None and _checksum(message, buffer) != message.checksum:
        # Without the sums: they cover wall times, too, and a ledger must be repeatable.
        raise WireError("its checksum is not the sender's: damaged on its way", "damaged")


def _check_size(message: Message, expected: int) -> None:
    if len(message.buffer) != expected:
        raise WireError(f"buffer of {len(message.buffer)} bytes; expected {expected}", "size")


def _tensor(message: Message, dtype: str, size: int, start: int) -> Tensor:
    """Return a copy of `size` numbers of the buffer, from byte `start`."""
    part = np.frombuffer(message.buffer, dtype, size, start)
    return torch.from_numpy(part.astype(part.dtype.newbyteorder("=")))


def _look(message: Message, start: int, size: int) -> tuple[Tensor, float] | None:
    """Check the seal; return `size` floats from byte `start` and the size of the largest, or None.

    None if the buffer is too short for them. Memory is read once: each block is summed, compared
    and, from a buffer that cannot be written (torch has no tensors of such), copied in the cache.
    """
    buffer, stop = memoryview(message.buffer), start + 4 * size
    if len(buffer) < stop:
        return check_seal(message)
    values, extremes = np.frombuffer(buffer, "<f4", size, start), [np.float32(0)]
    made = values if values.flags.writeable else np.empty(size, np.float32)

    def seen() -> Iterator[Any]:
        yield buffer[:start]
        for at in range(0, size, BLOCK_VALUES):
            yield (block := values[at : at + BLOCK_VALUES])
            extremes.extend((block.max(), block.min()))
            if made is not values:
                made[at : at + BLOCK_VALUES] = block
        yield buffer[stop:]

    parts = seen()
    check_seal(message, parts)
    deque(parts, 0)  # where there is no seal, nobody has read them
    most = abs(np.array(extremes)).max().item()
    return torch.from_numpy(made.astype(np.float32, copy=False)), most

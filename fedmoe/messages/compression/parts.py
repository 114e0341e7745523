"""The values of a delta that an update carries: shared parts, and experts with tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from fedmoe.adapter import Entry, Layout
from fedmoe.section import Component


@dataclass(frozen=True)
class Part:
    """The carried part of one tensor of an adapter."""

    entry: Entry
    experts: tuple[int, ...] | None
    """The experts whose rows are carried; None for a shared part, which is carried whole."""
    shape: tuple[int, ...]
    start: int
    """Where it begins among the carried values."""

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    @property
    def axis(self) -> int:
        """The axis along which values belong to one rank component, and so are alike in size.

        A component of B A is a row of A times a column of B. A column of B crosses all rows: a
        scale per row of B, which holds only `rank` values, would cost as much as the values.
        """
        dims = len(self.shape) - (self.experts is not None)
        return -2 if self.entry.name.endswith(".B") and dims > 1 else -1

    @property
    def num_scales(self) -> int:
        """Rank components here."""
        return math.prod(self.shape) // self.shape[self.axis] if math.prod(self.shape) else 0


Parts = tuple[Part, ...]


class Compression(Component):
    """Base of compressions, which write down the carried values of an update.

    The same values give the same bytes, and any bytes of the right number some values: nothing is
    decoded before its size is known, which follows from the counts alone.
    """

    error_feedback: Any = False
    """Whether a client adds what was lost to its next update."""
    owes_more: ClassVar[bool] = False
    """Whether what is lost may grow from round to round, as that of values never sent."""

    def num_bytes(self, parts: Parts) -> int:
        """Return the exact size of what `encode` returns."""
        raise NotImplementedError

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Return arrays whose bytes are sent one after another."""
        raise NotImplementedError

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """Return the values in `data`, which has `num_bytes(parts)` bytes.

        Raises:
            WireError: bytes that `encode` never makes.
        """
        raise NotImplementedError


def carried(layout: Layout, counts: Int64[np.ndarray, "layers experts"]) -> Parts:
    """The parts of a delta that are sent for `counts`, one after another; allocates no values."""
    reached = [tuple(np.flatnonzero(layer).tolist()) for layer in counts]
    parts, start = [], 0
    for entry in layout.entries:
        experts, shape = None, entry.shape
        if entry.layer is not None:
            experts = reached[entry.layer]
            shape = (len(experts), *entry.shape[1:])
        parts.append(Part(entry, experts, shape, start))
        start = parts[-1].stop
    return tuple(parts)


def all_parts(layout: Layout) -> Parts:
    """The parts when every expert was reached: the most an update can carry."""
    return carried(layout, np.ones((layout.num_layers, layout.num_experts), np.int64))


def num_values(parts: Parts) -> int:
    """Return the number of carried values."""
    return parts[-1].stop if parts else 0


def gather(flat: Float32[np.ndarray, " size"], parts: Parts) -> Float32[np.ndarray, " values"]:
    """The carried values of a flat delta; the delta itself, uncopied, when it is carried whole."""
    if num_values(parts) == flat.size:
        return flat
    values = np.empty(num_values(parts), np.float32)
    for part in parts:
        into = values[part.start : part.stop].reshape(part.shape)
        view = flat[part.entry.start : part.entry.stop].reshape(part.entry.shape)
        if part.experts is None:
            into[...] = view
        elif part.experts:
            # Anything but "clip" makes numpy go through a copy of its own.
            np.take(view, part.experts, axis=0, out=into, mode="clip")
    return values


def scatter(
    values: Float32[np.ndarray, " values"], parts: Parts, size: int
) -> Float32[np.ndarray, " size"]:
    """The flat delta of carried values, writable; 0.0 for every expert that is not carried."""
    if num_values(parts) == size:
        return values if values.flags.writeable else values.copy()
    flat = np.zeros(size, np.float32)
    for part in parts:
        view = flat[part.entry.start : part.entry.stop].reshape(part.entry.shape)
        rows = slice(None) if part.experts is None else list(part.experts)
        view[rows] = values[part.start : part.stop].reshape(part.shape)
    return flat

"""Real numbers as integers modulo 2^64, so that masks add up to nothing and sums are exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmoe.errors import FedMoEError

CHUNK = 2**17
BITS = 62
"""A sum over all clients stays below 2^62 in size, so that its sign can be told."""


@dataclass(frozen=True)
class Part:
    """A stretch of a vector whose values have one bound, known to everybody."""

    name: str
    length: int
    bound: float
    """The largest size of a client's value."""
    num_clients: int
    """Clients whose values may be added up."""

    @property
    def scale(self) -> float:
        """Return the integer that stands for 1, a power of two: the finest that cannot overflow."""
        return 2.0 ** math.floor(BITS - math.log2(self.num_clients * self.bound))

    def encode(self, values: np.ndarray, out: np.ndarray) -> None:
        """Write float64 values as int64, rounded to the nearest; a piece at a time, for memory.

        Raises:
            FedMoEError: a value is not finite or beyond the bound. The server gets the message, and
                so it does not name the value.
        """
        largest = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
        if not largest <= self.bound:
            raise FedMoEError(
                f"secure_aggregation: a value of {self.name} is beyond the range that all agreed "
                f"on, which ends at {self.bound:g}; lower the learning rate, or clip"
            )
        for start in range(0, len(values), CHUNK):
            piece = slice(start, start + CHUNK)
            out[piece] = np.rint(values[piece] * self.scale)

    def decoded(self, total: np.ndarray) -> np.ndarray:
        """Return the float64 values of a sum of encoded ones."""
        values = total.view(np.int64).astype(np.float64)
        values /= self.scale
        return values


def encode(parts: Sequence[Part], values: Sequence[np.ndarray]) -> np.ndarray:
    """Return all parts, one after another, as uint64.

    Example:
        >>> parts = [Part("losses", 2, bound=16.0, num_clients=3)]
        >>> encoded = encode(parts, [np.array([1.5, -2.0])])
        >>> decode(parts, encoded + encoded)["losses"].tolist()
        [3.0, -4.0]
    """
    found = np.empty(sum(part.length for part in parts), np.int64)
    start = 0
    for part, piece in zip(parts, values, strict=True):
        assert len(piece) == part.length, (part, len(piece))
        part.encode(piece, found[start : start + part.length])
        start += part.length
    return found.view(np.uint64)


def decode(parts: Sequence[Part], total: np.ndarray) -> dict[str, np.ndarray]:
    """Return the float64 values of each part of a sum, by name."""
    ends = np.cumsum([part.length for part in parts])[:-1]
    pieces = np.split(total, ends)
    return {part.name: part.decoded(piece) for part, piece in zip(parts, pieces, strict=True)}

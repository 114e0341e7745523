"""top_k: only the largest values, and where they lie."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from fedmoe.errors import WireError
from fedmoe.messages.compression.bf16 import from_bf16, to_bf16
from fedmoe.messages.compression.parts import Compression, Parts, num_values
from fedmoe.messages.compression.positions import (
    num_position_bytes,
    pack_positions,
    unpack_positions,
)
from fedmoe.section import section


@section
class TopK(Compression):
    """Send only the values of largest magnitude, as bfloat16, and where they lie.

    The largest of all values that the update carries, not of each tensor; among equals, the first.
    The rest arrive as zero.

    Source: the idea of Aji and Heafield 2017 (arXiv:1704.05021); with error feedback, of Stich et
    al. 2018 (arXiv:1809.07599, Alg. 1). They send gradients, we the delta of a local round.
    """

    name: Literal["top_k"] = "top_k"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the values that is sent."""
    error_feedback: bool = True
    """Keep what was not sent and add it to the client's next update. On: without it, what is
    small in every round is never heard of."""
    owes_more: ClassVar[bool] = True

    def num_kept(self, parts: Parts) -> int:
        """Return the number of values that are sent."""
        return math.ceil(self.share * num_values(parts))

    def num_bytes(self, parts: Parts) -> int:
        """The exact size of what `encode` returns."""
        kept = self.num_kept(parts)
        return 2 * kept + num_position_bytes(kept, num_values(parts))

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Values and positions, whose bytes are sent one after another."""
        positions = largest(values, self.num_kept(parts))
        return [to_bf16(values[positions]), *pack_positions(positions, values.size)]

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """The values in `data`, which has `num_bytes(parts)` bytes.

        Raises:
            WireError: the positions are not as many, not increasing, or beyond the values.
        """
        kept, total = self.num_kept(parts), num_values(parts)
        positions = unpack_positions(np.frombuffer(data, np.uint8, offset=2 * kept), kept, total)
        values = np.zeros(total, np.float32)
        values[positions] = from_bf16(np.frombuffer(data, "<u2", kept))
        return values


def largest(values: Float32[np.ndarray, " values"], kept: int) -> Int64[np.ndarray, " kept"]:
    """The positions, in order, of the `kept` values of largest magnitude; of equals, the first."""
    size = np.abs(values)
    if not np.isfinite(size).all():
        raise WireError("delta has a value that is not finite; training diverged", "not_finite")
    if kept == size.size:
        return np.arange(kept)
    threshold = np.partition(size, size.size - kept)[size.size - kept]
    chosen = size > threshold
    (equal,) = (size == threshold).nonzero()
    chosen[equal[: kept - int(chosen.sum())]] = True
    return chosen.nonzero()[0]

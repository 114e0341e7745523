"""bfloat16: the upper half of each float32, rounded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32

from fedmoe.messages.compression.parts import Compression, Parts, num_values
from fedmoe.section import section


@section
class Bf16(Compression):
    """Send every value as bfloat16, 2 bytes each, off by at most 1/256 of itself."""

    name: Literal["bf16"] = "bf16"
    error_feedback: bool = False
    """Keep what rounding lost and add it to the client's next update. Off: so little is lost that
    it is not worth a file of the adapter's size per client."""

    def num_bytes(self, parts: Parts) -> int:
        """Return the exact size of the result of `encode`."""
        return 2 * num_values(parts)

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Return the values as arrays whose bytes are sent in order; halves round to even."""
        return [to_bf16(values)]

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """Return the values in `data`, which has `num_bytes(parts)` bytes."""
        return from_bf16(np.frombuffer(data, "<u2"))


def to_bf16(values: Float32[np.ndarray, " values"]) -> np.ndarray:
    """Return the nearest bfloat16 of each value, as little-endian uint16."""
    return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy().astype("<u2", copy=False)


def from_bf16(bits: np.ndarray) -> Float32[np.ndarray, " values"]:
    """Return the float32 of each bfloat16."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)

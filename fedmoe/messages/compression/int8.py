"""int8: one byte per value and one scale per rank component."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32

from fedmoe.messages.compression.parts import Compression, Parts, num_values
from fedmoe.messages.compression.quantise import num_scales, quantise, restore
from fedmoe.section import section

LARGEST = 127


@section
class Int8(Compression):
    """Send every value as a whole number of up to 127 steps, 1 byte each.

    A step is 1/127 of the largest value of the same rank component: of a row of A or a column of
    B, expert by expert.
    """

    name: Literal["int8"] = "int8"
    error_feedback: bool = False
    """Keep what rounding lost and add it to the client's next update. Off: a value is off by at
    most 0.4 % of its component's largest, which is not worth a file of the adapter's size per
    client."""

    def num_bytes(self, parts: Parts) -> int:
        """Return the exact size of the result of `encode`."""
        return 4 * num_scales(parts) + num_values(parts)

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Return scales and integers, whose bytes are sent in order."""
        scales, whole = quantise(values, parts, LARGEST)
        return [scales.astype("<f4", copy=False), whole]

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """Return the values in `data`, which has `num_bytes(parts)` bytes."""
        scales = np.frombuffer(data, "<f4", num_scales(parts)).astype(np.float32, copy=False)
        return restore(scales, np.frombuffer(data, np.int8, offset=4 * len(scales)), parts)

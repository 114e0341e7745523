"""int4: two values in a byte and one scale per rank component."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32

from fedmoe.messages.compression.parts import Compression, Parts, num_values
from fedmoe.messages.compression.quantise import num_scales, quantise, restore
from fedmoe.section import section

LARGEST = 7


@section
class Int4(Compression):
    """Send every value as a whole number of up to 7 steps, half a byte each.

    A step is 1/7 of the largest value of the same rank component: of a row of A or a column of B,
    expert by expert.
    """

    name: Literal["int4"] = "int4"
    error_feedback: bool = True
    """Keep what rounding lost and add it to the client's next update. On: values below 7 % of
    their component's largest round to zero, and would never be heard of."""

    def num_bytes(self, parts: Parts) -> int:
        """Return the exact size of the result of `encode`."""
        return 4 * num_scales(parts) + -(-num_values(parts) // 2)

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Return scales and pairs of integers (the first in the low half), sent in order."""
        scales, whole = quantise(values, parts, LARGEST)
        half = whole.view(np.uint8)
        half &= 15
        packed = half[::2].copy()
        packed[: half.size // 2] |= half[1::2] << 4
        return [scales.astype("<f4", copy=False), packed]

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """Return the values in `data`, which has `num_bytes(parts)` bytes."""
        scales = np.frombuffer(data, "<f4", num_scales(parts)).astype(np.float32, copy=False)
        packed = np.frombuffer(data, np.int8, offset=4 * len(scales))
        whole = np.empty(num_values(parts), np.int8)
        # Shifting right copies the sign: a half byte becomes a number from -8 to 7.
        whole[::2] = (packed << 4) >> 4
        whole[1::2] = packed[: whole.size // 2] >> 4
        return restore(scales, whole, parts)

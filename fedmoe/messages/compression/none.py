"""No compression: every carried value as it is."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32

from fedmoe.messages.compression.parts import Compression, Parts, num_values
from fedmoe.section import section


@section
class NoCompression(Compression):
    """Send every value in full, 4 bytes each; an expert that no token reached costs nothing."""

    name: Literal["none"] = "none"

    def num_bytes(self, parts: Parts) -> int:
        """Return the exact size of the result of `encode`."""
        return 4 * num_values(parts)

    def encode(self, values: Float32[np.ndarray, " values"], parts: Parts) -> list[np.ndarray]:
        """Return the values as arrays whose bytes are sent in order."""
        return [values.astype("<f4", copy=False)]

    def decode(self, data: memoryview, parts: Parts) -> Float32[np.ndarray, " values"]:
        """Return the values in `data`, which has `num_bytes(parts)` bytes."""
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

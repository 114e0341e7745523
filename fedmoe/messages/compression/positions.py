r"""Increasing positions in few bits: Elias-Fano, whose size follows from two numbers alone.

Of $m$ positions below $n$, the lowest $l = \lfloor\log_2(n/m)\rfloor$ bits are written as they are;
the rest, $h_i$, as ones at $h_i + i$ of a row of bits. Together about $m (2 + \log_2(n/m))$ bits,
within a fifth of the least possible up to a share of 0.2; a bitmap has $n$.

Source: Elias 1974 (J. ACM 21(2)), Fano 1971.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8

from fedmoe.errors import WireError


def num_position_bytes(m: int, n: int) -> int:
    """Return the exact size of `m` positions below `n`."""
    low, high = _num_bits(m, n)
    return -(-m * low // 8) + -(-high // 8)


def pack_positions(positions: Int64[np.ndarray, " m"], n: int) -> list[UInt8[np.ndarray, " _"]]:
    """Return strictly increasing positions below `n` as two rows of bytes: low bits, high bits."""
    m = len(positions)
    low, high = _num_bits(m, n)
    rest = (positions[:, None] >> np.arange(low)) & 1
    ones = np.zeros(high, np.uint8)
    ones[(positions >> low) + np.arange(m)] = 1
    return [np.packbits(rest.astype(np.uint8), bitorder="little"), np.packbits(ones)]


def unpack_positions(data: UInt8[np.ndarray, " bytes"], m: int, n: int) -> Int64[np.ndarray, " m"]:
    """Return the positions in `data`, which has `num_position_bytes(m, n)` bytes.

    Raises:
        WireError: there are not `m` of them, or they do not increase, or one is not below `n`.
    """
    low, high = _num_bits(m, n)
    split = -(-m * low // 8)
    (ones,) = np.unpackbits(data[split:], count=high).nonzero()
    if len(ones) != m:
        raise WireError(f"{len(ones)} positions; expected {m}")
    rest = np.unpackbits(data[:split], count=m * low, bitorder="little").reshape(m, low)
    positions = (ones - np.arange(m)) << low
    for bit in range(low):
        positions |= rest[:, bit].astype(np.int64) << bit
    if m and ((np.diff(positions) <= 0).any() or positions[-1] >= n):
        raise WireError(f"positions do not increase up to at most {n - 1}")
    return positions


def _num_bits(m: int, n: int) -> tuple[int, int]:
    """Return the low bits per position, and the length of the row of high bits."""
    if m == 0:
        return 0, 0
    low = (n // m).bit_length() - 1
    return low, m + ((n - 1) >> low)

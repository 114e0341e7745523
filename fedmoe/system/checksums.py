"""Checksums at the memory's speed, which show damage and prove nothing about the sender.

One core with AVX-512 reads for XXH3 in .6 of the time of a copy, for CRC-32 in 2 (zlib 1.2.13), for
SHA-256 in 5.6.
"""

from collections.abc import Iterable

import xxhash


def checksum(parts: Iterable[bytes | memoryview]) -> str:
    """Return 32 hexadecimal digits that other bytes almost surely do not have.

    >>> checksum([b"ab", b"c"]) == checksum([b"abc"]) != checksum([b"abd"])
    True
    """
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)  # pyright: ignore[reportArgumentType]  # its stub knows no views
    return state.hexdigest()

"""Shamir's shares of a secret: any `threshold` of them give it back, fewer tell nothing of it.

Source: Shamir 1979 (doi 10.1145/359168.359176), by the library PyCryptodome, which Flower needs and
brings: over GF(2^128), a secret in pieces of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmoe.errors import AggregationError

PIECE = 16


def split(secret: bytes, threshold: int, number: int) -> list[bytes]:
    """Return `number` shares of a secret whose length is a multiple of 16 bytes.

    The share at place i belongs to the point i + 1; each is as long as the secret.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    assert len(secret) % PIECE == 0, len(secret)
    pieces = [secret[i : i + PIECE] for i in range(0, len(secret), PIECE)]
    by_piece = [dict(Shamir.split(threshold, number, piece, False)) for piece in pieces]
    return [b"".join(shares[i + 1] for shares in by_piece) for i in range(number)]


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from shares by their place.

    Raises:
        AggregationError: there are fewer than the threshold, or of unlike lengths.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    chosen = dict(sorted(shares.items())[:threshold])
    lengths = {len(share) for share in chosen.values()}
    if len(chosen) < threshold or len(lengths) != 1:
        raise AggregationError(
            f"{len(chosen)} of {threshold} shares of a secret are there; the round is lost"
        )
    return b"".join(
        Shamir.combine(
            [(place + 1, share[i : i + PIECE]) for place, share in chosen.items()], False
        )
        for i in range(0, lengths.pop(), PIECE)
    )

"""Keys of one client for one round: agreement, sealed shares, and streams of masks.

Everything comes from the library `cryptography`: X25519, HKDF with SHA-256, AES-256. Flower's own
primitives (`flwr.common.secure_aggregation`) derive a pair's key without saying what it is for, so
that one key would serve to encrypt and to mask, and in every round; here each use, run, round and
direction has a key of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmoe.errors import WireError
from fedmoe.system.extras import require

CHUNK = 2**17
"""Values of a mask that are made and added at once: 1 MiB, which a core's cache holds."""
KEY_BYTES = 32
NONCE_BYTES = 12


def x25519() -> Any:
    """Return the module of X25519.

    Raises:
        FedMoEError: `cryptography` is not installed.
    """
    require("secure_aggregation", "privacy", "cryptography", "Crypto")
    from cryptography.hazmat.primitives.asymmetric import x25519 as module

    return module


@dataclass(frozen=True, eq=False)
class KeyPair:
    """An X25519 key pair that serves one purpose in one round."""

    private: Any = field(default_factory=lambda: x25519().X25519PrivateKey.generate())

    @classmethod
    def of(cls, private: bytes) -> KeyPair:
        """Return the pair of a private key's 32 bytes."""
        return cls(x25519().X25519PrivateKey.from_private_bytes(private))

    @property
    def public(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    @property
    def secret(self) -> bytes:
        """Return the private key, 32 bytes."""
        return self.private.private_bytes_raw()

    def agree(self, public: bytes, about: bytes) -> bytes:
        """Return the 32 bytes that only the holders of both private keys can compute.

        Args:
            public: the other's public key.
            about: the purpose: other purposes give other bytes.

        Raises:
            WireError: `public` is no key that anybody can have.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        try:
            shared = self.private.exchange(x25519().X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # of a wrong length, or of small order
            raise WireError(f"a public key of {len(public)} bytes is none: {error}") from error
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=about).derive(shared)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """Return a text that only holders of the key can read, and nobody can change (AES-256-GCM)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return a sealed text.

    Raises:
        WireError: it is not what the key's other holder sealed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
    except (InvalidTag, ValueError) as error:
        raise WireError("a sealed share was changed on its way") from error


def add_mask(values: np.ndarray, key: bytes, sign: int) -> None:
    """Add a key's stream of uniform integers modulo 2^64, or take it away, in place.

    Args:
        values: uint64.
        key: 32 bytes that are used for this stream alone: AES-256 in counter mode from zero.
        sign: 1 or -1.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros, buffer = bytes(8 * CHUNK), bytearray(8 * CHUNK + 15)
    words = np.frombuffer(buffer, np.uint64, CHUNK)
    add = np.add if sign > 0 else np.subtract
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        stream.update_into(memoryview(zeros)[: 8 * len(part)], buffer)
        add(part, words[: len(part)], out=part)

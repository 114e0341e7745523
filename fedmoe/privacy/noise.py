"""Gaussian noise whose seed is drawn from the operating system and forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedmoe.system.extras import require

CHUNK = 2**20
"""Values that are drawn at once."""

Normals = Callable[[int], np.ndarray]
"""Returns that many independent standard normal values, float64."""


class SystemNormals:
    """Standard normal values from a stream cipher under a key that only this object has had.

    The key is never a run's seed: whoever knows a run's seed must not be able to take the noise
    off again. Values are float64, made by Box and Muller's formula from 53 uniform bits; what
    the last bits of such a sum could tell (Mironov 2012, doi 10.1145/2382196.2382264) is blurred
    by rounding the noised sum to float32, and not proved away.
    """

    def __init__(self) -> None:
        require("privacy", "privacy", "cryptography")
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        cipher = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None)
        self._stream = cipher.encryptor()

    def __call__(self, number: int) -> np.ndarray:
        """Return `number` values, shape (number,)."""
        pairs = (number + 1) // 2
        words = np.frombuffer(self._stream.update(bytes(16 * pairs)), dtype=np.uint64)
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:number]


def add_noise(values: Tensor, deviation: float, normals: Normals) -> None:
    """Add noise of a standard deviation to every value of a float64 tensor, in place."""
    for part in values.split(CHUNK):
        part += torch.from_numpy(normals(len(part))) * deviation

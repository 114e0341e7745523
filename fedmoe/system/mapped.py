"""Tensors in files without a name, which the system may put out of memory."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor


def mapped(values: Tensor) -> Tensor:
    """Return a copy of a tensor in a temporary file, which goes when the copy does.

    Its pages count as cache: the system writes them to TMPDIR and drops them where memory is short.
    Where TMPDIR is in memory (tmpfs) nothing is gained; set it to a disk.

    Raises:
        OSError: there is no room in TMPDIR.

    Example:
        >>> mapped(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    with tempfile.TemporaryFile(prefix="fedmoe-") as file:
        values.contiguous().numpy().tofile(file)
        file.flush()
        return torch.from_numpy(np.memmap(file, values.numpy().dtype, "r+", shape=values.shape))

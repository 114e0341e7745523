"""The least time that a device could take for a layer's step: its weights' reads, or its products.

Both peaks are measured on the device itself, so that a figure says what is left to gain there.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import torch

from simulations.benchmarks.measure import Options
from simulations.benchmarks.sparse_layer import Size

COPIED_BYTES = {"cpu": 2**27, "cuda": 2**31}
"""More than any cache holds."""
PRODUCT_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square product whose speed is the peak."""


@dataclass(frozen=True)
class Limits:
    """A device's peaks."""

    bytes_per_second: float
    """Of a copy, which reads and writes each byte."""
    flops_per_second: float
    """Of a large square product."""

    def floor(self, size: Size, tokens: int, top_k: int) -> float:
        r"""Return the seconds that a training step of a sparse layer takes at least.

        $$\max\left(\frac{2 \cdot 3 D W E' b}{B},\
          \frac{2 T k\,(2 \cdot 3 D W + 3 \cdot R\,(2 D + 3 W))}{F}\right)$$

        `E'` experts of `E` that some token reaches, in the mean of even routing, each read in
        forward and in backward in `b` bytes a value, at `B` bytes a second; `T` tokens, each with
        `k` experts of hidden `D`, width `W`, LoRA rank `R`; frozen weights have no gradient, and
        LoRA's products come with two gradients each; `F` operations a second.
        """
        values, rows = 3 * size.hidden * size.width, tokens * top_k
        reached = size.experts * (1 - (1 - top_k / size.experts) ** tokens)
        reads = 2 * values * reached * size.dtype.itemsize / self.bytes_per_second
        low = size.rank * (2 * size.hidden + 3 * size.width)
        return max(reads, 2 * rows * (2 * values + 3 * low) / self.flops_per_second)


def measured(options: Options, dtype: torch.dtype) -> Limits:
    """Return the peaks of the device, the medians over turns."""
    kind = torch.device(options.device).type
    data = torch.empty(COPIED_BYTES[kind] // (64 if options.quick else 1), dtype=torch.uint8)
    data = data.to(options.device)
    into, n = torch.empty_like(data), PRODUCT_ROWS[kind] // (8 if options.quick else 1)
    x = torch.randn(n, n, device=options.device).to(dtype)
    out = torch.empty_like(x)
    steps = {"copy": partial(into.copy_, data), "product": partial(torch.mm, x, x, out=out)}
    seconds = {k: statistics.median(v) for k, v in options.turns(steps).items()}
    return Limits(2 * data.nbytes / seconds["copy"], 2 * n**3 / seconds["product"])

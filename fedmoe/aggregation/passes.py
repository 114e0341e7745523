"""The passes over memory of a weighted mean: in torch, or compiled where numba is installed.

torch has no operation that takes float32 into a float64 sum: it widens a block, then adds it. The
kernels below do both in one go, several times as fast, and give the same bits: every product is
exact (see `streaming.WEIGHT_BITS`), so that it makes no difference who fuses it with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from torch import Tensor

from fedmoe.adapter import Layout
from fedmoe.aggregation.blocks import Blocks

TOGETHER = 4
"""Updates held at once, and added in one pass of the sum through memory. Grouping changes no bit of
the result."""
LEAST_VALUES = 2**18
"""A thread is given no less; to start one takes as long as a few ten thousand values."""


class InTorch:
    """Block by block, so that a block's sum stays in cache.

    Weights are float64, one for each owner; see `Blocks`.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def subtract(self, total: Tensor, deltas: list[Tensor], weights: list[Tensor]) -> None:
        """`total -= sum of weight * delta`, in the order given, for up to `TOGETHER` of them."""
        buffer = total.new_empty(max(self.blocks.sizes, default=0))
        per_block = zip(
            self.blocks.cut(total),
            zip(*map(self.blocks.cut, deltas), strict=True),
            zip(*map(self.blocks.weights, weights), strict=True),
            strict=True,
        )
        for into, parts, gammas in per_block:
            wide = buffer[: into.numel()].view_as(into)
            for part, gamma in zip(parts, gammas, strict=True):
                if gamma is not None:
                    into.addcmul_(wide.copy_(part), gamma, value=-1)

    def descended(self, flat: Tensor, total: Tensor, weight: Tensor) -> Tensor:
        """`flat - total / weight`, rounded once; where the weight is zero, `flat` to the bit.

        May use `total` up.
        """
        made = torch.from_numpy(flat.numpy().copy())  # huge pages; see `weighted_mean`
        cut, moved = self.blocks.cut, self.blocks.weights(weight)
        for old, summed, rows in zip(cut(made), cut(total), moved, strict=True):
            if rows is not None:
                # Where one row's weight is zero its sum is zero too: no move.
                old.copy_(old - summed.div_(rows.where(rows > 0, 1)))
        return made


class Kernels(NamedTuple):
    """Both passes over the rows from `first` to before `last`; row i ends where i + 1 starts."""

    subtract: Callable[..., None]
    descend: Callable[..., None]


class Compiled:
    """The same row by row in machine code, on as many threads as torch would use."""

    def __init__(self, blocks: Blocks, compiled: Kernels) -> None:
        self.kernels, self.owners = compiled, blocks.owners
        widths = torch.tensor(blocks.sizes, dtype=torch.int64) // blocks.heights
        ends = widths.repeat_interleave(blocks.heights).cumsum(0).numpy()
        self.starts = np.concatenate([np.zeros(1, np.int64), ends])

    def subtract(self, total: Tensor, deltas: list[Tensor], weights: list[Tensor]) -> None:
        rows = np.zeros((TOGETHER, len(self.owners)))
        for into, weight in zip(rows, weights, strict=False):
            into[:] = weight[self.owners].numpy()
        # What is missing weighs zero and is not read.
        arrays = [d.contiguous().numpy() for d in deltas + deltas[:1] * (TOGETHER - len(deltas))]
        self._run(self.kernels.subtract, total.numpy(), tuple(arrays), rows)

    def descended(self, flat: Tensor, total: Tensor, weight: Tensor) -> Tensor:
        old = flat.contiguous().numpy()
        made, rows = np.empty_like(old), weight[self.owners].numpy()
        self._run(self.kernels.descend, made, old, total.numpy(), rows)
        return torch.from_numpy(made)

    def _run(self, kernel: Callable[..., None], *values: Any) -> None:
        """All rows, shared out over threads, which do not wait for Python."""
        size = int(self.starts[-1])
        threads = max(1, min(torch.get_num_threads(), size // LEAST_VALUES))
        cuts = np.searchsorted(self.starts, np.linspace(0, size, threads + 1)).tolist()
        spans = list(pairwise(cuts))
        if threads == 1:
            kernel(*spans[0], self.starts, *values)
            return
        with ThreadPoolExecutor(threads) as workers:
            list(workers.map(lambda span: kernel(*span, self.starts, *values), spans))


def passes(layout: Layout) -> InTorch | Compiled:
    """The fastest that is installed."""
    blocks, compiled = Blocks.of(layout), kernels()
    return InTorch(blocks) if compiled is None else Compiled(blocks, compiled)


@cache
def kernels() -> Kernels | None:
    """The compiled passes; None without numba (extra `fast`) or with one too old for this numpy.

    Compiled on first use, a second or two; machine code is kept for the next process.
    """
    try:
        import numba  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def compiled(kernel: Callable[..., None]) -> Callable[..., None]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(kernel)
        except RuntimeError:  # neither the package's folder nor the user's can be written to
            return numba.njit(**options)(kernel)

    return Kernels(compiled(_subtract_rows), compiled(_descend_rows))


@no_type_check
def _subtract_rows(
    first: int,
    last: int,
    starts: np.ndarray,
    total: np.ndarray,
    deltas: Sequence[np.ndarray],
    weights: np.ndarray,
) -> None:
    for row in range(first, last):
        start, stop = starts[row], starts[row + 1]
        into, (a, b, c, d) = total[start:stop], deltas
        a, b, c, d = a[start:stop], b[start:stop], c[start:stop], d[start:stop]
        w, x, y, z = weights[0, row], weights[1, row], weights[2, row], weights[3, row]
        # The compiler takes the questions out of the loop: a weight of zero reads nothing.
        for i in range(into.size):
            value = into[i]
            if w != 0:
                value -= w * a[i]
            if x != 0:
                value -= x * b[i]
            if y != 0:
                value -= y * c[i]
            if z != 0:
                value -= z * d[i]
            into[i] = value


@no_type_check
def _descend_rows(
    first: int,
    last: int,
    starts: np.ndarray,
    made: np.ndarray,
    old: np.ndarray,
    total: np.ndarray,
    weights: np.ndarray,
) -> None:
    for row in range(first, last):
        start, stop, weight = starts[row], starts[row + 1], weights[row]
        into, before, summed = made[start:stop], old[start:stop], total[start:stop]
        if weight == 0:
            into[:] = before
        else:
            for i in range(into.size):
                into[i] = before[i] - summed[i] / weight

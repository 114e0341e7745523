"""Rows grouped by the expert they were routed to, and their products with stacked weights.

Two ways to the same products: one `mm` per expert, which is as fast as the processor where an
expert has many rows, and one grouped product for all experts, which saves the calls where it has
few, and which is the grouped GEMM of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.models.memory.stored import Stored, Transposed

BLOCK_ROWS = 1024
"""Rows computed at once on a CPU: temporaries stay small, and in its cache. Results of another
number agree within rounding, and bitwise only on some processors."""
GROUPED_ROWS = 64
"""Mean rows per expert below which one grouped product beats a loop on a CPU."""
GROUPED_BYTES = 16
"""Bytes of which a row must be a multiple for torch's grouped products."""
Stacked = Tensor | Stored | Transposed
"""Weights of all experts, of which `w[e]` and `w[i:j]` are tensors."""


class Routing(NamedTuple):
    """The chosen (token, slot) pairs of one layer, sorted by expert."""

    token: Tensor  # (rows,) the token each row came from
    slot: Tensor  # (rows,) its position in the flattened (tokens, top_k) choice
    counts: Tensor  # int64 (experts,)
    sizes: list[int]  # the same as a list

    def blocks(self, grouped: bool) -> Iterator[Block]:
        """Yield the blocks of a layer; see `blocks`."""
        return blocks(self, grouped)


def route(index: Tensor, num_experts: int) -> Routing:
    """Group the pairs in `index` (tokens, top_k); the index `num_experts` means "no expert"."""
    choice = index.reshape(-1)
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=num_experts + 1)[:num_experts]
    sizes: list[int] = counts.tolist()
    slot = order[: sum(sizes)]
    return Routing(slot // index.shape[-1], slot, counts, sizes)


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of some neighbouring experts, which are computed at once."""

    token: Tensor
    slot: Tensor
    experts: slice
    """The range of experts."""
    sizes: list[int]
    """Rows of each of them; an expert without rows is not touched."""
    ends: Tensor | None
    """int32 (experts,): the end of each one's rows; None to loop over experts."""

    def mm(self, x: Tensor, w: Stacked) -> Tensor:
        """Return (rows, out): each row of `x` times its expert's `w` (experts, in, out)."""
        if self.ends is not None:
            return F.grouped_mm(x, w[self.experts], offs=self.ends)
        out = x.new_empty(len(x), w.shape[2])
        for rows, weight, into in zip(self._split(x), self._pick(w), self._split(out), strict=True):
            torch.mm(rows, weight, out=into)
        return out

    def addmm_(self, out: Tensor, x: Tensor, w: Tensor, scale: float) -> None:
        """Add `scale` times `mm(x, w)` to `out`."""
        if self.ends is not None:
            out.add_(self.mm(x, w), alpha=scale)
            return
        for rows, weight, into in zip(self._split(x), self._pick(w), self._split(out), strict=True):
            into.addmm_(rows, weight, alpha=scale)

    def outer(self, left: Tensor, right: Tensor, into: Tensor) -> None:
        """Write `left^T right` of each expert's rows to its part of `into` (experts, m, n)."""
        if self.ends is not None:
            into[self.experts] = F.grouped_mm(left.mT, right, offs=self.ends)
            empty = [self.experts.start + i for i, size in enumerate(self.sizes) if not size]
            if empty:
                into[empty] = 0
            return
        for a, b, target in zip(
            self._split(left), self._split(right), self._pick(into), strict=True
        ):
            torch.mm(a.mT, b, out=target)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([size for size in self.sizes if size])

    def _pick(self, w: Stacked) -> Iterator[Tensor]:
        """Yield one expert's weights after another, so that at most two exist at once."""
        return (w[self.experts.start + i] for i, size in enumerate(self.sizes) if size)


def blocks(routing: Routing, grouped: bool) -> Iterator[Block]:
    """Yield the blocks of a layer, in the order of experts; on a GPU there is one.

    `grouped` states that shapes and dtype allow a grouped product at all.
    """
    on_gpu = routing.slot.is_cuda
    limit = sum(routing.sizes) if on_gpu else BLOCK_ROWS
    first = start = 0
    while first < len(routing.sizes):
        last, stop = first + 1, start + routing.sizes[first]
        while last < len(routing.sizes) and stop + routing.sizes[last] - start <= limit:
            stop += routing.sizes[last]
            last += 1
        if stop > start:
            few = on_gpu or stop - start < GROUPED_ROWS * (last - first)
            ends = routing.counts[first:last].cumsum(0).int() if grouped and few else None
            rows, sizes = slice(start, stop), routing.sizes[first:last]
            yield Block(routing.token[rows], routing.slot[rows], slice(first, last), sizes, ends)
        first, start = last, stop


def can_group(x: Tensor, *widths: int) -> bool:
    """Return whether torch's grouped product takes this dtype and rows of these widths.

    torch 2.13: no float64, and every row must be a whole number of 16 bytes.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return all(width and width * x.element_size() % GROUPED_BYTES == 0 for width in widths)


def groupable(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return `A1`, `B1`, `A2` and `B2` padded to a rank whose products can be grouped.

    Zeros are added to the rank, which adds nothing to any product, and their gradients are cut off.
    Without them a rank of 20 in bfloat16 would cost a GPU a loop over all experts in every product.
    """
    a1, b1, a2, b2 = factors
    spare = -a1.shape[1] % (GROUPED_BYTES // a1.element_size())
    if not spare:
        return [*factors]
    down, across = (0, 0, 0, spare), (0, spare)
    return [F.pad(a1, down), F.pad(b1, across), F.pad(a2, down), F.pad(b2, across)]

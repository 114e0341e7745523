"""Rows grouped by the expert they were routed to, and their products with stacked weights.

Two ways to the same products: one `mm` per expert, which is as fast as the processor where an
expert has many rows, and one grouped product for all experts, which saves the calls where it has
few, and which is the grouped GEMM of a GPU.

A GPU waits for nobody: how many rows an expert has stays there. Rows are as many as tokens times
k, a bound known beforehand; those that no expert has come last, no product computes them, and what
stands in their place is written nowhere that is read.
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
EVEN_ROWS = 32
"""Of many rows a multiple of these is computed at once in bfloat16 on a CPU, then the rest: oneDNN
compiles a product for every number of rows it meets, which can take longer than the product."""
Stacked = Tensor | Stored | Transposed
"""Weights of all experts, of which `w[e]` and `w[i:j]` are tensors."""
Product = tuple[Tensor, Tensor, Tensor, bool]
"""An expert's weights, some of its rows in two tensors, and whether they are its first."""


class Routing(NamedTuple):
    """The chosen (token, slot) pairs of one layer, sorted by expert."""

    slot: Tensor  # (rows,) each one's position in the flattened (tokens, top_k) choice
    top_k: int
    counts: Tensor  # (experts,)
    sizes: list[int] | None  # the same as a list; None where the host is not told
    ends: Tensor  # int32 (experts,): the end of each one's rows; empty where the host is told
    expert: Tensor  # (rows,) each row's expert, and one more for none; empty likewise

    @property
    def token(self) -> Tensor:
        """(rows,): the token each row came from."""
        return self.slot // self.top_k

    def blocks(self, grouped: bool) -> Iterator[Block]:
        """Yield the blocks of a layer; see `blocks`."""
        return blocks(self, grouped)

    def told(self) -> Routing:
        """Return the routing without rows of no expert; a GPU is waited for."""
        if self.sizes is not None:
            return self
        sizes: list[int] = self.counts.tolist()
        return self._replace(slot=self.slot[: sum(sizes)], sizes=sizes)


def unwaited(x: Tensor) -> bool:
    """Return whether the host must not wait for values like these: on a GPU it starts kernels."""
    return x.device.type == "cuda"


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on a device; on its way to a GPU nobody waits for it to arrive."""
    if device.type == "cuda" and x.device.type == "cpu" and torch.cuda.is_available():
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def route(index: Tensor, num_experts: int) -> Routing:
    """Group the pairs in `index` (tokens, top_k); the index `num_experts` means "no expert"."""
    choice, top_k = index.reshape(-1), index.shape[-1]
    if unwaited(index):
        expert, slot = choice.sort(stable=True)
        numbers = torch.arange(num_experts + 1, device=index.device)
        starts = torch.searchsorted(expert, numbers, out_int32=True)
        ends = starts[1:]
        return Routing(slot, top_k, ends - starts[:-1], None, ends, expert)
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=num_experts + 1)[:num_experts]
    sizes: list[int] = counts.tolist()
    slot = order[: sum(sizes)]
    return Routing(slot, top_k, counts, sizes, slot[:0], slot[:0])


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of some neighbouring experts, which are computed at once."""

    token: Tensor
    slot: Tensor
    experts: slice
    """The range of experts."""
    sizes: list[int] | None
    """Rows of each of them; an expert without rows is not touched. None where nobody is told."""
    ends: Tensor | None
    """int32 (experts,): the end of each one's rows; None to loop over experts."""
    into: Tensor
    """The row's place in a result for all slots and one more, that of rows of no expert."""
    expert: Tensor
    """Each row's expert, or one more for none, where nobody is told sizes."""
    empty: Tensor | None = None
    """bool (experts, 1, 1): those without rows, where products are grouped."""

    def mm(self, x: Tensor, w: Stacked) -> Tensor:
        """Return (rows, out): each row of `x` times its expert's `w` (experts, in, out)."""
        if self.ends is not None:
            return F.grouped_mm(x, self._part(w), offs=self.ends)
        out = x.new_empty(len(x), w.shape[2])
        for weight, rows, into, _ in self._products(w, x, out):
            torch.mm(rows, weight, out=into)
        return out

    def addmm_(self, out: Tensor, x: Tensor, w: Tensor, scale: float) -> None:
        """Add `scale` times `mm(x, w)` to `out`."""
        if self.ends is not None:
            out.add_(self.mm(x, w), alpha=scale)
            return
        for weight, rows, into, _ in self._products(w, x, out):
            into.addmm_(rows, weight, alpha=scale)

    def outer(self, left: Tensor, right: Tensor, into: Tensor) -> None:
        """Write `left^T right` of each expert's rows to its part of `into` (experts, m, n)."""
        if self.ends is not None:
            product = F.grouped_mm(left.mT, right, offs=self.ends)
            assert self.empty is not None
            # torch writes nothing in the place of an expert without rows.
            self._part(into).copy_(product.masked_fill_(self.empty, 0))
            return
        for target, a, b, first in self._products(into, left, right):
            if first:
                torch.mm(a.mT, b, out=target)
            else:
                target.addmm_(a.mT, b)

    def of_experts(self, values: Tensor) -> Tensor:
        """Return each row's (rows, out) of values for all experts (experts, out)."""
        values = values[self.experts]
        if self.sizes is None:
            return values[self.expert.clamp(max=len(values) - 1)]
        sizes = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(sizes, dim=0, output_size=len(self.token))

    def _part(self, w: Stacked) -> Tensor:
        """Return the weights of the block's experts."""
        return w if self.sizes is None and isinstance(w, Tensor) else w[self.experts]

    def _products(self, w: Stacked, x: Tensor, y: Tensor) -> Iterator[Product]:
        """Yield what is to be multiplied; at most two experts' weights exist at once."""
        assert self.sizes is not None, "a loop over experts needs their sizes"
        even, numbered = compiles(x), enumerate(self.sizes, self.experts.start)
        sizes = [(e, _even(size) if even else [size]) for e, size in numbered if size]
        rows = [n for _, some in sizes for n in some]
        pairs = zip(x.split(rows), y.split(rows), strict=True)
        for expert, some in sizes:
            weights = w[expert]
            for n in range(len(some)):
                yield weights, *next(pairs), not n


def blocks(routing: Routing, grouped: bool) -> Iterator[Block]:
    """Yield the blocks of a layer, in the order of experts; on a GPU there is one.

    `grouped` states that shapes and dtype allow a grouped product at all.
    """
    routing = routing if grouped else routing.told()
    token, (slot, _, counts, sizes, ends, expert) = routing.token, routing
    if sizes is None:
        every, num_experts, none = slice(0, len(counts)), len(counts), _none(counts)
        into = torch.where(expert < num_experts, slot, len(slot))
        yield Block(token, slot, every, None, ends, into, expert, none)
        return
    limit = sum(sizes) if slot.is_cuda else BLOCK_ROWS
    first = start = 0
    while first < len(sizes):
        last, stop = first + 1, start + sizes[first]
        while last < len(sizes) and stop + sizes[last] - start <= limit:
            stop += sizes[last]
            last += 1
        if stop > start:
            few = stop - start < GROUPED_ROWS * (last - first)
            range_, rows, own = slice(first, last), slice(start, stop), counts[first:last]
            ends = own.cumsum(0).int() if grouped and few else None
            none = None if ends is None else _none(own)
            slots, of = slot[rows], sizes[first:last]
            yield Block(token[rows], slots, range_, of, ends, slots, expert, none)
        first, start = last, stop


def _none(counts: Tensor) -> Tensor:
    return (counts == 0).view(-1, 1, 1)


def _even(size: int) -> list[int]:
    """Return rows as two numbers of which there are few, or one."""
    rest = size if size <= 2 * EVEN_ROWS else size % EVEN_ROWS
    return [n for n in (size - rest, rest) if n]


def compiles(x: Tensor) -> bool:
    """Return whether a product of rows like these is compiled for their number."""
    return x.dtype is torch.bfloat16 and not unwaited(x)


def can_group(x: Tensor, *widths: int) -> bool:
    """Return whether torch's grouped product takes this dtype and rows of these widths.

    torch 2.13: no float64, and every row must be a whole number of 16 bytes.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or compiles(x):
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

"""Triton kernels of the expert path: a layer's products in two launches, their gradients in six.

The formula is that of `experts.SparseExperts`, for gates of SiLU. One kernel makes rows of
`(W_e + s B_e A_e) x`: it finds the experts of its rows on the device, gathers `x`, keeps the
low-rank product beside the large one, and ends as its place in the layer asks: with the gate, with
the gate's gradient, or with rows that are weighed and put where they belong. The other makes
gradients of A and B; frozen weights get none. Weights of 8 bits become numbers within a product.

Nothing is read back, and no sum depends on the order in which programs run. On a processor the
kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), which is slow and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from fedmoe.models.memory.stored import Quantised, Stored, Transposed

if TYPE_CHECKING:
    from fedmoe.models.routed import Routing

SUM, GATE, GATE_BACK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Ends of a product: rows that are put in their slots; the gate; the gate's gradient."""
SMALLEST = 16
"""The least rows, columns or ranks that a product of tiles takes."""
SMALLEST_ = tl.constexpr(SMALLEST)


@triton.jit
def _tile(ends, number, EXPERTS: tl.constexpr, POWER: tl.constexpr, ROWS: tl.constexpr):
    """Return a tile's expert, its first row, and the end of that expert's rows; else none."""
    e = tl.arange(0, POWER)
    end = tl.load(ends + e, mask=e < EXPERTS, other=0)
    start = tl.load(ends + e - 1, mask=(e > 0) & (e < EXPERTS), other=0)
    tiles = tl.where(e < EXPERTS, (end - start + ROWS - 1) // ROWS, 0)
    before = tl.cumsum(tiles, 0) - tiles
    here = (before <= number) & (number < before + tiles)
    first = tl.sum(tl.where(here, start + (number - before) * ROWS, 0), 0)
    return tl.sum(tl.where(here, e, 0), 0), first, tl.sum(tl.where(here, end, 0), 0)


# fmt: off
@triton.jit
def _affine(
    x, w, scales, a, b, low, expert, place, row, live, n, inside, num_in, num_out, rank, scale,
    w_out, w_in, a_rank, a_in, b_out, b_rank, SCALED: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, KIND: tl.constexpr,
):
    # fmt: on
    """Return a tile of `x W_e^T + s (x A_e^T) B_e^T`, and store `x A_e^T` in `low`."""
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    r = tl.arange(0, SMALLEST_ if RANK == 0 else RANK)
    ranked = r < rank
    thin = tl.zeros((ROWS, SMALLEST_ if RANK == 0 else RANK), tl.float32)
    for start in range(0, num_in, DEPTH):
        k = start + tl.arange(0, DEPTH)
        at = x + place[:, None] * num_in + k[None, :]
        xs = tl.load(at, mask=live & (k < num_in)[None, :], other=0.0).to(KIND)
        deep = (k < num_in)[:, None]
        ws = tl.load(w + n * w_out + k[:, None] * w_in, mask=inside & deep, other=0).to(KIND)
        if SCALED == 1:
            by = tl.load(scales + expert * num_out + n, mask=inside, other=0.0)
            ws *= by.to(KIND)
        if SCALED == 2:
            by = tl.load(scales + expert * num_in + k[:, None], mask=deep, other=0.0)
            ws *= by.to(KIND)
        acc = tl.dot(xs, ws, acc, input_precision="ieee")
        if RANK > 0:
            at = a + expert * rank * num_in + r[None, :] * a_rank + k[:, None] * a_in
            ranks = tl.load(at, mask=deep & ranked[None, :], other=0.0)
            thin = tl.dot(xs, ranks.to(KIND), thin, input_precision="ieee")
    if RANK > 0:
        narrow = thin.to(KIND)
        if tl.program_id(1) == 0:
            tl.store(low + row[:, None] * rank + r[None, :], narrow, live & ranked[None, :])
        at = b + expert * rank * num_out + n * b_out + r[:, None] * b_rank
        ranks = tl.load(at, mask=inside & ranked[:, None], other=0.0)
        acc += scale * tl.dot(narrow, ranks.to(KIND), input_precision="ieee")
    return acc


@triton.jit
def _gate_back(
    acc, share, gate_up, h, out, sums, both, flat, here, to, live, num_out, columns, column
):
    """Store `h`, the gradient of `[g; u]`, and a part of the sums for the rows' weights."""
    gate = tl.load(gate_up + both, here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + both + num_out, here, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(gate)
    active = gate * open_
    tl.store(h + flat, active * up, here)
    tl.store(sums + to * columns + column, tl.sum(acc * active * up, 1), mask=live)
    dh = acc * share
    tl.store(out + both, dh * up * (open_ + active * (1 - open_)), here)
    tl.store(out + both + num_out, dh * active, here)


# fmt: off
@triton.jit
def _product(
    x, w, scales, a, b, low, gate_up, h, out, weights, sums, slot, ends, num_in, num_out, rank,
    scale, w_expert, w_out, w_in, a_rank, a_in, b_out, b_rank, TOP_K: tl.constexpr,
    END: tl.constexpr, GATHERS: tl.constexpr, WEIGHS: tl.constexpr, SCALED: tl.constexpr,
    RANK: tl.constexpr, EXPERTS: tl.constexpr, POWER: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, KIND: tl.constexpr,
):
    # fmt: on
    """Compute a tile of `x W_e^T + s (x A_e^T) B_e^T`, and end as `END` says.

    `w` (experts, out, in) may be a transposed view, as in a gradient; so may `a` and `b`. SCALED
    are weights of 8 bits, 1: with a scale for each of `out`, 2: for each of `in`. The gate needs
    pairs `[g; u]`: neighbouring columns of its tile are a value of each, `num_out` apart.
    """
    expert, first, stop = _tile(ends, tl.program_id(0), EXPERTS, POWER, ROWS)
    if first >= stop:
        return
    PAIRS: tl.constexpr = 2 if END == GATE else 1
    expert = expert.to(tl.int64)
    row = (first + tl.arange(0, ROWS)).to(tl.int64)
    live = row < stop
    to = tl.load(slot + row, mask=live, other=0)
    place = to // TOP_K if GATHERS else row
    j = tl.arange(0, PAIRS * COLUMNS)
    one = tl.program_id(1) * COLUMNS + j // PAIRS
    n, inside = (one + j % PAIRS * num_out)[None, :], (one < num_out)[None, :]
    acc = _affine(
        x, w + expert * w_expert, scales, a, b, low, expert, place, row, live[:, None], n, inside,
        num_in, num_out * PAIRS, rank, scale, w_out, w_in, a_rank, a_in, b_out, b_rank,
        SCALED, RANK, ROWS, PAIRS * COLUMNS, DEPTH, KIND,
    )  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = live[:, None] & (column < num_out)[None, :]
    flat = row[:, None] * num_out + column[None, :]
    both = row[:, None] * 2 * num_out + column[None, :]
    share = tl.load(weights + to, mask=live, other=0.0)[:, None] if WEIGHS else 1.0
    if END == GATE:
        gate, up = tl.split(tl.reshape(acc.to(KIND), (ROWS, COLUMNS, 2)))
        tl.store(gate_up + both, gate, here)
        tl.store(gate_up + both + num_out, up, here)
        gate = gate.to(tl.float32)
        tl.store(h + flat, gate * tl.sigmoid(gate) * up, here)
    elif END == SUM:
        tl.store(out + to[:, None] * num_out + column[None, :], acc * share, here)
    else:
        number, columns = tl.program_id(1), tl.num_programs(1)
        _gate_back(
            acc, share, gate_up, h, out, sums, both, flat, here, to, live, num_out, columns, number
        )


# fmt: off
@triton.jit
def _outer(
    left, right, out, weights, slot, ends, num_left, num_right, scale, TOP_K: tl.constexpr,
    GATHERS: tl.constexpr, WEIGHS: tl.constexpr, ROWS: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, KIND: tl.constexpr,
):
    # fmt: on
    """Compute a tile of `scale left^T right` over one expert's rows; zeros where it has none.

    GATHERS, 1: the left rows are those of tokens, 2: the right ones. WEIGHS: rows have a weight.
    """
    expert = tl.program_id(0)
    stop = tl.load(ends + expert)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    i = tl.program_id(1) * LEFT + tl.arange(0, LEFT)
    j = tl.program_id(2) * RIGHT + tl.arange(0, RIGHT)
    acc = tl.zeros((LEFT, RIGHT), tl.float32)
    for first in range(start, stop, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        live = row < stop
        of = tl.load(slot + row, mask=live, other=0)
        at_left = of // TOP_K if GATHERS == 1 else row
        at_right = of // TOP_K if GATHERS == 2 else row
        at = left + at_left[None, :] * num_left + i[:, None]
        lefts = tl.load(at, live[None, :] & (i < num_left)[:, None], 0.0).to(KIND)
        if WEIGHS:
            lefts *= tl.load(weights + of, mask=live, other=0.0)[None, :].to(KIND)
        at = right + at_right[:, None] * num_right + j[None, :]
        rights = tl.load(at, live[:, None] & (j < num_right)[None, :], 0.0).to(KIND)
        acc = tl.dot(lefts, rights, acc, input_precision="ieee")
    at = out + (expert * num_left + i[:, None]).to(tl.int64) * num_right + j[None, :]
    tl.store(at, scale * acc, (i < num_left)[:, None] & (j < num_right)[None, :])


class Frozen(NamedTuple):
    """Frozen weights (experts, out, in), with LoRA; 8-bit ones have scales (experts, out, 1)."""

    w: Tensor
    scales: Tensor | None
    a: Tensor
    b: Tensor

    @staticmethod
    def of(w: Tensor | Quantised, a: Tensor, b: Tensor) -> Frozen:
        """Return weights in a form that is `readable`."""
        return Frozen(w, None, a, b) if isinstance(w, Tensor) else Frozen(w.codes, w.scales, a, b)


class Layer(NamedTuple):
    """What all launches of a layer share."""

    routing: Routing
    weights: Tensor
    scale: float

    def product(
        self,
        x: Tensor,
        of: Frozen,
        end: int,
        *,
        turned: bool = False,
        gate_up: Tensor | None = None,
        h: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Start a product; return the low-rank one beside it, and sums for the rows' weights.

        `turned` is a gradient's product, from out to in: A and B change places.
        """
        (num_experts, num_out, num_in), (slot, top_k) = of.w.shape, self.routing[:2]
        a, b, rank = of.a, of.b, of.a.shape[1]
        (each, *w_steps), a_steps, b_steps = of.w.stride(), a.stride()[1:], b.stride()[1:]
        if turned:
            a, b, num_out, num_in = b, a, num_in, num_out
            w_steps, a_steps, b_steps = w_steps[::-1], b_steps[::-1], a_steps[::-1]
        num_out //= 2 if end == GATE else 1
        rows, columns = tile(len(slot) // num_experts), tile(num_out)
        grid = triton.cdiv(len(slot), rows) + num_experts, triton.cdiv(num_out, columns)
        low = x.new_empty(len(slot), rank)
        sums = x
        if end == GATE_BACK:
            sums = x.new_zeros(*self.weights.shape, grid[1], dtype=torch.float32)
        _product[grid](  # pyright: ignore[reportIndexIssue]
            *(x, of.w, x if of.scales is None else of.scales, a, b, low),
            *(x if part is None else part for part in (gate_up, h, out)),
            *(self.weights, sums, slot, self.routing.ends),
            *(num_in, num_out, rank, self.scale),
            *(each, *w_steps, *a_steps, *b_steps),
            TOP_K=top_k,
            END=end,
            GATHERS=end != SUM,
            WEIGHS=end == GATE_BACK or (end == SUM and not turned),
            SCALED=0 if of.scales is None else 1 + turned,
            RANK=max(SMALLEST, triton.next_power_of_2(rank)) if rank else 0,
            EXPERTS=num_experts,
            POWER=triton.next_power_of_2(num_experts),
            ROWS=rows,
            COLUMNS=columns,
            DEPTH=64 if x.element_size() == 2 else 32,
            KIND=kind(x),
        )
        return low, sums

    def outer(
        self, left: Tensor, right: Tensor, like: Tensor, gathers: int, weighs: bool
    ) -> Tensor:
        """Return `s left^T right` over each expert's rows, as `like` (experts, left, right)."""
        out, (num_experts, num_left, num_right) = torch.empty_like(like), like.shape
        if not out.numel():
            return out
        lefts, rights = tile(num_left), tile(num_right)
        grid = num_experts, triton.cdiv(num_left, lefts), triton.cdiv(num_right, rights)
        _outer[grid](  # pyright: ignore[reportIndexIssue]
            *(left, right, out, self.weights, self.routing.slot, self.routing.ends),
            *(num_left, num_right, self.scale),
            TOP_K=self.routing.top_k,
            GATHERS=gathers,
            WEIGHS=weighs,
            ROWS=32,
            LEFT=lefts,
            RIGHT=rights,
            KIND=kind(left),
        )
        return out


def kind(x: Tensor) -> Any:
    """Return the type in which tiles are multiplied: the interpreter of 3.7 has no bfloat16."""
    if x.dtype == torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32
    return tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16


def tile(size: int) -> int:
    """Return a power of two for a tile over so many rows or columns."""
    return min(64, max(SMALLEST, triton.next_power_of_2(size)))


class FusedExperts(torch.autograd.Function):
    """`experts.SparseExperts` in Triton's kernels; saved are `x`, `[g; u]` and the low ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        a1: Tensor,
        b1: Tensor,
        a2: Tensor,
        b2: Tensor,
        scale: float,
        routing: Routing,
        frozen: Sequence[Tensor | Quantised],
    ) -> Tensor:
        first, second = Frozen.of(frozen[0], a1, b1), Frozen.of(frozen[1], a2, b2)
        x, weights = x.contiguous(), weights.contiguous()
        layer, rows = Layer(routing, weights, scale), len(routing.slot)
        h = x.new_empty(rows, second.w.shape[2])
        gate_up = x.new_empty(rows, 2 * h.shape[1])
        low1, _ = layer.product(x, first, GATE, gate_up=gate_up, h=h)
        slots = x.new_zeros(*weights.shape, x.shape[1])
        low2, _ = layer.product(h, second, SUM, out=slots)
        ctx.save_for_backward(x, weights, a1, b1, a2, b2, gate_up, low1, low2)
        ctx.scale, ctx.routing, ctx.frozen = scale, routing, frozen
        return slots.sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, a1, b1, a2, b2, gate_up, low1, low2 = ctx.saved_tensors
        first, second = Frozen.of(ctx.frozen[0], a1, b1), Frozen.of(ctx.frozen[1], a2, b2)
        layer, dy = Layer(ctx.routing, weights, ctx.scale), grads[0].contiguous()
        h, dgu = x.new_empty(len(gate_up), second.w.shape[2]), torch.empty_like(gate_up)
        given = {"gate_up": gate_up, "h": h, "out": dgu}
        dlow2, sums = layer.product(dy, second, GATE_BACK, turned=True, **given)
        slots = x.new_zeros(*weights.shape, x.shape[1])
        dlow1, _ = layer.product(dgu, first, SUM, turned=True, out=slots)
        return (
            slots.sum(1),
            sums.sum(-1).to(weights.dtype),
            layer.outer(dlow1, x, a1, 2, weighs=False),
            layer.outer(dgu, low1, b1, 0, weighs=False),
            layer.outer(dlow2, h, a2, 0, weighs=True),
            layer.outer(dy, low2, b2, 1, weighs=True),
            *[None] * 3,
        )


def readable(w: Tensor | Stored | Transposed) -> bool:
    """Return whether the kernels read weights in this form: full, or of 8 bits on the device."""
    if isinstance(w, Tensor):
        return not w.requires_grad
    return isinstance(w, Quantised) and w.bits == 8 and not w.is_elsewhere

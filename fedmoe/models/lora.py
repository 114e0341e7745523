"""LoRA on frozen weights: those of stacked experts, of one linear layer, and a router's shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fedmoe.models.dropout import Dropout, dropped, dropped_product

if TYPE_CHECKING:
    from fedmoe.models.routed import Block, Stacked
    from fedmoe.models.shared_pass import SharedPass


class Adapted(NamedTuple):
    """Stacked frozen weights with LoRA: expert e computes `(W_e + s B_e A_e) x`; rank 0 is none."""

    w: Stacked  # (experts, out, in)
    a: Tensor  # (experts, rank, in)
    b: Tensor  # (experts, out, rank)
    scale: float

    def forward(self, x: Tensor, block: Block, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `A (m x)` (rows, rank) and the output (rows, out)."""
        y = block.mm(x, self.w.mT)
        if not self.a.shape[1]:
            return x.new_empty(len(x), 0), y
        low = block.mm(dropped(x, mask), self.a.mT)
        block.addmm_(y, low, self.b.mT, self.scale)
        return low, y

    def backward(self, dy: Tensor, block: Block, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of `A (m x)` and of `x`."""
        dx = block.mm(dy, self.w)
        if not self.a.shape[1]:
            return dy.new_empty(len(dy), 0), dx
        dlow = block.mm(dy, self.b).mul_(self.scale)
        if mask is None:
            block.addmm_(dx, dlow, self.a, 1.0)
        else:
            dx.addcmul_(block.mm(dlow, self.a), mask)
        return dlow, dx

    def collect(
        self,
        into: Gradients,
        x: Tensor,
        low: Tensor,
        dy: Tensor,
        dlow: Tensor,
        block: Block,
        mask: Tensor | None,
    ) -> None:
        """Write the block's part of the gradients of `W`, where wanted, `A` and `B`."""
        if into.w is not None:
            block.outer(dy, x, into.w)
        if self.a.shape[1]:
            block.outer(dlow, dropped(x, mask), into.a)
            block.outer(dy, low * self.scale, into.b)


class Gradients(NamedTuple):
    """Buffers for the gradients of one `Adapted`; experts without rows stay zero."""

    w: Tensor | None
    a: Tensor
    b: Tensor


class LoRALinear(nn.Module):
    """A frozen linear layer plus `scale * B A x`."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.A, self.B, self.scale = base, nn.Parameter(A), nn.Parameter(B), scale
        self.drops: Dropout | None = None
        self.shared: SharedPass | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if self.shared is not None:
            return self.shared.linear(self, rows).view(*x.shape[:-1], -1)
        A = self.A.to(x.dtype)
        low = rows @ A.T if self.drops is None else dropped_product(rows, A, self.drops.next())
        out = torch.addmm(self.base(rows), low, self.B.to(x.dtype).T, alpha=self.scale)
        return out.view(*x.shape[:-1], -1)


class Shift(nn.Module):
    """The parametrization `weight + shift` of a trainable router."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift.to(weight.dtype)

"""Dropout on the inputs of LoRA, whose masks are made again in backward instead of saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LEVELS = 2**16


class Mask(NamedTuple):
    """The masks of one call of a layer, by number; the same ones whenever they are asked for."""

    p: float
    seed: int

    def of(self, x: Tensor, number: int = 0) -> Tensor:
        """Return zeros in a share `p` of the places of `x`, and 1 / (1 - p) in the others.

        A place takes 16 random bits: `p` is rounded to 1 / 65,536, and the mean is exact.
        """
        generator = torch.Generator(x.device).manual_seed(self.seed + number)
        # A quarter of the time of bernoulli_, which would be half of a product with the weights.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=generator)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        zeros = min(round(self.p * LEVELS), LEVELS - 1)
        return (bits >= zeros - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - zeros))


class Dropout:
    """Draws a mask for each call of a layer, one after another, from a stream of a local round."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        self.p, self.generator = p, generator

    def next(self) -> Mask:
        """Return the mask of the next call."""
        seed = torch.randint(2**62, (), generator=self.generator)
        return Mask(self.p, int(seed))


def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x` under a mask; `x` itself where there is none."""
    return x if mask is None else x * mask


def dropped_product(x: Tensor, a: Tensor, mask: Mask) -> Tensor:
    """Return `(m * x) A^T`, (rows, rank), of `x` (rows, in) and `A` (rank, in)."""
    out = DroppedProduct.apply(x, a, mask)
    assert isinstance(out, Tensor)
    return out


class DroppedProduct(torch.autograd.Function):
    """`(m * x) A^T` for a linear layer's rows; x is saved for backward, and neither m nor m * x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, mask: Mask) -> Tensor:
        ctx.save_for_backward(x, a)
        ctx.mask = mask
        return (x * mask.of(x)) @ a.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, a), mask = ctx.saved_tensors, ctx.mask.of(ctx.saved_tensors[0])
        dx = (grads[0] @ a).mul_(mask) if ctx.needs_input_grad[0] else None
        return dx, grads[0].T @ (x * mask), None

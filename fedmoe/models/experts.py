"""The expert fast path: tokens sorted by expert once, low-rank products on routed rows only.

transformers computes fused experts through a registry (`ExpertsInterface`); the function below is
registered there as `fedmoe`, so no model code is forked. PEFT's own wrapper adds the dense delta
`B A` of *every* expert to the weights on every forward; here LoRA costs two thin products per
routed row, an expert without tokens costs nothing, and frozen weights get no gradient buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

IMPLEMENTATION = "fedmoe"
STATE = "fedmoe_state"


class ExpertLoRA(NamedTuple):
    """LoRA factors of one layer's experts; `scale` is alpha / rank."""

    gate_up_A: Tensor  # (experts, rank, hidden)
    gate_up_B: Tensor  # (experts, 2 * width, rank)
    down_A: Tensor  # (experts, rank, width)
    down_B: Tensor  # (experts, hidden, rank)
    scale: float


class Routing(NamedTuple):
    """Routed rows of one layer by expert: those of expert `e` are `bounds[e]:bounds[e + 1]`."""

    token: Tensor  # (rows,) the token each row came from
    slot: Tensor  # (rows,) its position in the flattened (tokens, top_k) choice
    bounds: list[int]  # experts + 1

    def segments(self) -> Iterator[tuple[int, slice]]:
        """(expert, its rows) for every expert that has rows."""
        for e, (start, end) in enumerate(pairwise(self.bounds)):
            if end > start:
                yield e, slice(start, end)


def route(index: Tensor, num_experts: int) -> Routing:
    """Group the chosen (token, slot) pairs by expert; the index `num_experts` means "no expert"."""
    choice = index.reshape(-1)
    order = choice.argsort(stable=True)
    ends = torch.bincount(choice, minlength=num_experts + 1)[:num_experts].cumsum(0).tolist()
    slot = order[: ends[-1]]
    return Routing(slot // index.shape[-1], slot, [0, *ends])


class SparseExperts(torch.autograd.Function):
    """Forward and backward of a gated expert layer with LoRA.

    For a token x and its chosen expert j with router weight w_j (s is the LoRA scale):
    `[g; u] = W1_j x + s B1_j A1_j x`, `h = act(g) * u`, `y = sum_j w_j (W2_j h + s B2_j A2_j h)`.

    Saved for backward: the layer's input, the routing, `[g; u]` and two (rows, rank) products.
    The gradient of `w_j` needs no saved output: it is `<(W2_j + s B2_j A2_j)^T dL/dy, h>`.
    Factors of rank 0 stand for "no LoRA".
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, a1: Tensor, b1: Tensor,
        a2: Tensor, b2: Tensor, scale: float, routing: Routing, act: nn.Module,
    ) -> Tensor:  # fmt: skip
        token, rows, rank = routing.token, len(routing.token), a1.shape[1]
        xs = x[token]
        gate_up = x.new_empty(rows, w1.shape[1])
        low1, low2, y = x.new_empty(rows, rank), x.new_empty(rows, rank), torch.empty_like(xs)
        for e, part in routing.segments():
            torch.mm(xs[part], a1[e].T, out=low1[part])
            torch.mm(xs[part], w1[e].T, out=gate_up[part]).addmm_(low1[part], b1[e].T, alpha=scale)
        gate, up = gate_up.chunk(2, dim=-1)
        h = act(gate) * up  # not in place: an identity returns the saved gate itself
        for e, part in routing.segments():
            torch.mm(h[part], a2[e].T, out=low2[part])
            torch.mm(h[part], w2[e].T, out=y[part]).addmm_(low2[part], b2[e].T, alpha=scale)
        row_weight = weights.reshape(-1)[routing.slot].unsqueeze(1)
        out = torch.zeros_like(x).index_add_(0, token, y.mul_(row_weight))
        ctx.save_for_backward(x, weights, w1, w2, a1, b1, a2, b2, gate_up, low1, low2)
        ctx.scale, ctx.routing, ctx.act = scale, routing, act
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, w1, w2, a1, b1, a2, b2, gate_up, low1, low2 = ctx.saved_tensors
        (grad_out,), s, routing = grads, ctx.scale, ctx.routing
        token, row_weight = routing.token, weights.reshape(-1)[routing.slot].unsqueeze(1)
        da1, db1, da2, db2 = (torch.zeros_like(f) for f in (a1, b1, a2, b2))
        dw1 = torch.zeros_like(w1) if ctx.needs_input_grad[2] else None
        dw2 = torch.zeros_like(w2) if ctx.needs_input_grad[3] else None
        gate, up = gate_up.chunk(2, dim=-1)
        activated, dact = _activation(ctx.act, gate)
        h, xs, dy = activated * up, x[token], grad_out[token]
        dh, dxs, dlow1, dlow2 = (torch.empty_like(t) for t in (h, xs, low1, low2))
        for e, part in routing.segments():
            torch.mm(dy[part], b2[e], out=dlow2[part]).mul_(s)
            torch.mm(dy[part], w2[e], out=dh[part]).addmm_(dlow2[part], a2[e])
        dweights = torch.zeros_like(weights)
        dweights.view(-1)[routing.slot] = (dh * h).sum(-1)
        dy, dh, dlow2 = dy.mul_(row_weight), dh.mul_(row_weight), dlow2.mul_(row_weight)
        dgu = torch.cat([dact(dh * up), dh * activated], dim=-1)
        for e, part in routing.segments():
            torch.mm(dgu[part], b1[e], out=dlow1[part]).mul_(s)
            torch.mm(dgu[part], w1[e], out=dxs[part]).addmm_(dlow1[part], a1[e])
            torch.mm(dlow1[part].T, xs[part], out=da1[e])
            torch.mm(dgu[part].T, low1[part], out=db1[e]).mul_(s)
            torch.mm(dlow2[part].T, h[part], out=da2[e])
            torch.mm(dy[part].T, low2[part], out=db2[e]).mul_(s)
            if dw1 is not None:
                torch.mm(dgu[part].T, xs[part], out=dw1[e])
            if dw2 is not None:
                torch.mm(dy[part].T, h[part], out=dw2[e])
        dx = torch.zeros_like(x).index_add_(0, token, dxs)
        return dx, dweights, dw1, dw2, da1, db1, da2, db2, None, None, None


def _activation(act: nn.Module, gate: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The activation of `gate` and the function that maps its gradient back to `gate`'s."""
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        out = act(leaf)
    return out.detach(), lambda grad: torch.autograd.grad(out, leaf, grad)[0]


@dataclass(eq=False)
class ExpertState:
    """What an adapted experts module carries beside its frozen weights."""

    lora: ExpertLoRA | None = None
    rescaler: Tensor | None = None
    """One factor on the layer's output, a scalar; None leaves it alone."""
    valid: Tensor | None = None
    """bool (tokens,): False marks padding, which reaches no expert and is not counted."""
    counts: Tensor | None = None
    """int64 (experts,): routed tokens so far; None switches counting off."""


def no_lora(gate_up: Tensor, down: Tensor) -> ExpertLoRA:
    """Factors of rank 0 for weights (experts, 2 * width, hidden) and (experts, hidden, width)."""
    a1, a2 = (w.new_zeros(w.shape[0], 0, w.shape[2]) for w in (gate_up, down))
    b1, b2 = (w.new_zeros(*w.shape[:2], 0) for w in (gate_up, down))
    return ExpertLoRA(a1, b1, a2, b2, 1.0)


def experts_forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """transformers' experts call: `hidden` (tokens, hidden), `index`, `weights` (tokens, top_k)."""
    state: ExpertState = getattr(module, STATE, None) or ExpertState()
    num_experts = int(module.num_experts)  # pyright: ignore[reportArgumentType]
    if state.valid is not None:
        index = index.masked_fill(~state.valid.unsqueeze(1), num_experts)
    routing = route(index, num_experts)
    if state.counts is not None:
        state.counts += torch.tensor(routing.bounds).diff()
    lora = state.lora or no_lora(module.gate_up_proj, module.down_proj)  # pyright: ignore
    out = SparseExperts.apply(
        hidden, weights.to(hidden.dtype), module.gate_up_proj, module.down_proj,
        *(factor.to(hidden.dtype) for factor in lora[:4]), lora.scale, routing, module.act_fn,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out if state.rescaler is None else out * state.rescaler.to(out.dtype)


def register() -> None:
    """Make `fedmoe` a valid experts implementation in transformers."""
    ExpertsInterface.register(IMPLEMENTATION, experts_forward)

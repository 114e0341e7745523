"""The expert fast path: tokens sorted by expert once, low-rank products on routed rows only.

transformers computes fused experts through a registry (`ExpertsInterface`); the function below is
registered there as `fedmoe`, so no model code is forked. PEFT's own wrapper adds the dense delta
`B A` of *every* expert to the weights on every forward; here LoRA costs two thin products per
routed row, an expert without tokens costs nothing, and frozen weights get no gradient buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """Routed rows of one layer, grouped by expert: rows of expert `e` are `bounds[e]:bounds[e+1]`."""

    token: Tensor  # (rows,) the token each row came from
    slot: Tensor  # (rows,) its position in the flattened (tokens, top_k) choice
    bounds: list[int]  # experts + 1


def route(index: Tensor, num_experts: int) -> Routing:
    """Group the chosen (token, slot) pairs by expert; the index `num_experts` means "no expert"."""
    choice = index.reshape(-1)
    order = choice.argsort(stable=True)
    ends = torch.bincount(choice, minlength=num_experts + 1)[:num_experts].cumsum(0).tolist()
    slot = order[: ends[-1]]
    return Routing(slot // index.shape[-1], slot, [0, *ends])


class SparseExperts(torch.autograd.Function):
    """Forward and backward of a gated expert layer, with or without LoRA.

    `y_t = sum_j w_tj (W2_j h + s B2_j A2_j h)`, `h = act(g) * u`, `[g; u] = W1_j x_t + s B1_j A1_j x_t`.
    Saved for backward: the layer's input, the routing, `[g; u]` and the two `(rows, rank)` products.
    The gradient of `w_tj` needs no saved output: it is `<dL/dy_t W2_j (1 + LoRA), h>`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, routing: Routing, act: nn.Module,
        scale: float, *factors: Tensor,
    ) -> Tensor:
        rows, lora = len(routing.token), bool(factors)
        a1, b1, a2, b2 = factors if lora else (None,) * 4
        row_weight = weights.reshape(-1)[routing.slot].unsqueeze(1)
        gate_up = x.new_empty(rows, w1.shape[1])
        low1, low2 = (x.new_empty(rows, a1.shape[1]) for _ in range(2)) if lora else (None, None)
        out = torch.zeros_like(x)
        for e, part in _segments(routing.bounds):
            xs, gu = x[routing.token[part]], gate_up[part]
            torch.mm(xs, w1[e].T, out=gu)
            if lora:
                torch.mm(xs, a1[e].T, out=low1[part])
                gu.addmm_(low1[part], b1[e].T, alpha=scale)
            gate, up = gu.chunk(2, dim=-1)
            h = act(gate).mul_(up)
            y = h @ w2[e].T
            if lora:
                torch.mm(h, a2[e].T, out=low2[part])
                y.addmm_(low2[part], b2[e].T, alpha=scale)
            out.index_add_(0, routing.token[part], y.mul_(row_weight[part]))
        ctx.save_for_backward(x, weights, w1, w2, gate_up, low1, low2, *factors)
        ctx.routing, ctx.act, ctx.scale = routing, act, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, w1, w2, gate_up, low1, low2, *factors = ctx.saved_tensors
        (grad_out,), routing, scale, lora = grads, ctx.routing, ctx.scale, bool(factors)
        a1, b1, a2, b2 = factors if lora else (None,) * 4
        row_weight = weights.reshape(-1)[routing.slot].unsqueeze(1)
        dx, dweights = torch.zeros_like(x), torch.zeros_like(weights)
        dw1, dw2 = (torch.zeros_like(w) if need else None for w, need in zip((w1, w2), ctx.needs_input_grad[2:4]))
        dfactors = [torch.zeros_like(f) for f in factors]
        for e, part in _segments(routing.bounds):
            token, weight = routing.token[part], row_weight[part]
            gate, up = gate_up[part].chunk(2, dim=-1)
            activated, dact = _activation(ctx.act, gate)
            h, dy = activated * up, grad_out[token]
            dh = dy @ w2[e]
            if lora:
                dlow2 = (dy @ b2[e]).mul_(scale)
                dh.addmm_(dlow2, a2[e])
            dweights.view(-1)[routing.slot[part]] = (dh * h).sum(-1)
            dy, dh = dy.mul_(weight), dh.mul_(weight)
            dgu = torch.cat([dact(dh * up), dh * activated], dim=-1)
            dxs, xs = dgu @ w1[e], x[token]
            if lora:
                dlow1 = (dgu @ b1[e]).mul_(scale)
                dxs.addmm_(dlow1, a1[e])
                torch.mm(dlow1.T, xs, out=dfactors[0][e])
                torch.mm(dgu.T, low1[part] * scale, out=dfactors[1][e])
                torch.mm((dlow2 * weight).T, h, out=dfactors[2][e])
                torch.mm(dy.T, low2[part] * scale, out=dfactors[3][e])
            if dw1 is not None:
                torch.mm(dgu.T, xs, out=dw1[e])
            if dw2 is not None:
                torch.mm(dy.T, h, out=dw2[e])
            dx.index_add_(0, token, dxs)
        return dx, dweights, dw1, dw2, None, None, None, *dfactors


def _segments(bounds: list[int]) -> Iterator[tuple[int, slice]]:
    """Yield (expert, its rows) for every expert that has rows."""
    for e, (start, end) in enumerate(zip(bounds, bounds[1:])):
        if end > start:
            yield e, slice(start, end)


def _activation(act: nn.Module, gate: Tensor):
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


def experts_forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """transformers' experts call: `hidden` (tokens, hidden), `index`, `weights` (tokens, top_k)."""
    state: ExpertState = getattr(module, STATE, None) or ExpertState()
    num_experts = int(module.num_experts)  # pyright: ignore[reportArgumentType]
    if state.valid is not None:
        index = index.masked_fill(~state.valid.unsqueeze(1), num_experts)
    routing = route(index, num_experts)
    if state.counts is not None:
        state.counts += torch.tensor(routing.bounds).diff()
    factors, scale = (state.lora[:4], state.lora.scale) if state.lora else ((), 1.0)
    out = SparseExperts.apply(
        hidden, weights.to(hidden.dtype), module.gate_up_proj, module.down_proj, routing,
        module.act_fn, scale, *(f.to(hidden.dtype) for f in factors),
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out if state.rescaler is None else out * state.rescaler.to(out.dtype)


def register() -> None:
    """Make `fedmoe` a valid experts implementation in transformers."""
    ExpertsInterface.register(IMPLEMENTATION, experts_forward)

"""The expert fast path: tokens sorted by expert once, low-rank products on routed rows only.

transformers computes fused experts through a registry (`ExpertsInterface`); the function below is
registered there as `fedmoe`, so no model code is forked. PEFT's own wrapper adds the dense delta
`B A` of *every* expert to the weights on every forward; here LoRA costs two thin products per
routed row, an expert without tokens costs nothing, and frozen weights get no gradient buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.models.dropout import Mask, dropped
from fedmoe.models.expert_state import Biases, ExpertLoRA, ExpertState, Stacks, no_lora
from fedmoe.models.lora import Adapted, Gradients
from fedmoe.models.private import own_gate
from fedmoe.models.routed import Block, Routing, Stacked, can_group, groupable, route, unwaited

if TYPE_CHECKING:
    from fedmoe.models.shared_pass import PairRouting

IMPLEMENTATION = "fedmoe"
STATE = "fedmoe_state"


@dataclass(frozen=True)
class OwnGate:
    """A family's way from `[g; u]` to `h` that replaces `act(g) * u`."""

    apply: Callable[[Tensor], Tensor]


Gate = nn.Module | OwnGate
"""An activation of the first half, or a family's own gate."""


class SparseExperts(torch.autograd.Function):
    """Forward and backward of a gated expert layer with LoRA.

    For a token x and its chosen expert j with router weight w_j (s is the LoRA scale):
    `[g; u] = W1_j x + s B1_j A1_j x`, `h = act(g) * u`, `y = sum_j w_j (W2_j h + s B2_j A2_j h)`.

    Saved for backward: the layer's input, the routing, `[g; u]` and two (rows, rank) products; with
    `recompute` only the first two. The gradient of `w_j` needs no saved output: it is
    `<(W2_j + s B2_j A2_j)^T dL/dy, h>`.

    With `stored` the products read their weights from there; `w1` and `w2` then stand for shapes.
    `biases` are added to `[g; u]` and to `W2_j h`; an `OwnGate` makes `h` of `[g; u]` otherwise.
    With `drop` a mask m of each row stands before both A: `A1_j (m x)` and `A2_j (m' h)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        w1: Tensor,
        w2: Tensor,
        a1: Tensor,
        b1: Tensor,
        a2: Tensor,
        b2: Tensor,
        scale: float,
        routing: Routing | PairRouting,
        act: Gate,
        recompute: bool = False,
        stored: tuple[Stacked, Stacked] | None = None,
        biases: Biases | None = None,
        drop: Mask | None = None,
    ) -> Tensor:
        read1, read2 = stored or (w1, w2)
        first, second = Adapted(read1, a1, b1, scale), Adapted(read2, a2, b2, scale)
        grouped = can_group(x, w1.shape[2], w2.shape[2], *([a1.shape[1]] if a1.shape[1] else []))
        # A grouped product would make the weights of all experts at once, which a GPU has room for.
        grouped = grouped and (stored is None or unwaited(x))
        out, saved, parts = torch.zeros_like(x), [], list(routing.blocks(grouped))
        for i, block in enumerate(parts):
            xs = x[block.token]
            low1, gate_up = first.forward(xs, block, drop and drop.of(xs, 2 * i))
            if biases is not None:
                gate_up += block.of_experts(biases.gate_up)
            h = _gated(act, gate_up)
            low2, y = second.forward(h, block, drop and drop.of(h, 2 * i + 1))
            if biases is not None:
                y += block.of_experts(biases.down)
            _combine(out, y.mul_(_row_weights(weights, block)), block, weights.shape[1])
            saved += [] if recompute else [low1, gate_up, low2]
        ctx.save_for_backward(x, weights, w1, w2, a1, b1, a2, b2, *saved)
        ctx.scale, ctx.parts, ctx.act, ctx.stored, ctx.biases = scale, parts, act, stored, biases
        ctx.drop = drop
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, w1, w2, a1, b1, a2, b2, *saved = ctx.saved_tensors
        read1, read2 = ctx.stored or (w1, w2)
        first, second = Adapted(read1, a1, b1, ctx.scale), Adapted(read2, a2, b2, ctx.scale)
        into1, into2 = (
            _buffers(first, ctx.needs_input_grad[2]),
            _buffers(second, ctx.needs_input_grad[3]),
        )
        dx, dweights = torch.zeros_like(x), weights.new_zeros(weights.numel() + 1)
        for i, block in enumerate(ctx.parts):
            xs, row_weight = x[block.token], _row_weights(weights, block)
            kept = saved[3 * i : 3 * i + 3]
            mask1 = ctx.drop and ctx.drop.of(xs, 2 * i)
            low1, gate_up = kept[:2] if kept else first.forward(xs, block, mask1)
            if ctx.biases is not None and not kept:
                gate_up += block.of_experts(ctx.biases.gate_up)
            h, dgate = _gate(ctx.act, gate_up)
            dy = grads[0][block.token]
            mask2 = ctx.drop and ctx.drop.of(h, 2 * i + 1)
            low2 = kept[2] if kept else block.mm(dropped(h, mask2), a2.mT)
            dlow2, dh = second.backward(dy, block, mask2)
            dweights[block.into] = (dh * h).sum(-1)
            if ctx.biases is not None:
                dweights[block.into] += (dy * block.of_experts(ctx.biases.down)).sum(-1)
            second.collect(
                into2, h, low2, dy.mul_(row_weight), dlow2.mul_(row_weight), block, mask2
            )
            dgu = dgate(dh.mul_(row_weight))
            dlow1, dxs = first.backward(dgu, block, mask1)
            first.collect(into1, xs, low1, dgu, dlow1, block, mask1)
            _combine(dx, dxs, block, weights.shape[1])
        dweights = dweights[:-1].view_as(weights)
        return dx, dweights, into1.w, into2.w, into1.a, into1.b, into2.a, into2.b, *[None] * 7


def _buffers(adapted: Adapted, trained: bool) -> Gradients:
    a, b = torch.zeros_like(adapted.a), torch.zeros_like(adapted.b)
    assert not trained or isinstance(adapted.w, Tensor), "weights in another form are frozen"
    return Gradients(torch.zeros_like(adapted.w) if trained else None, a, b)  # pyright: ignore


def _row_weights(weights: Tensor, block: Block) -> Tensor:
    """Return the router's weight of each row, (rows, 1)."""
    return weights.reshape(-1)[block.slot].unsqueeze(1)


def add_rows(out: Tensor, rows: Tensor, block: Block) -> None:
    """Add rows to their tokens, expert by expert."""
    out.index_add_(0, block.token, rows)


def add_slots(out: Tensor, rows: Tensor, block: Block, top_k: int) -> None:
    """Add rows where `index_add_` has no fixed order (CUDA): each slot has a separate place."""
    slots = rows.new_zeros(len(out) * top_k + 1, out.shape[1])
    slots[block.into] = rows
    out.add_(slots[:-1].view(len(out), top_k, -1).sum(1))


def _combine(out: Tensor, rows: Tensor, block: Block, top_k: int) -> None:
    """Add rows to their tokens, bitwise identical in every call."""
    if unwaited(out):
        add_slots(out, rows, block, top_k)
    else:
        add_rows(out, rows, block)


def _gated(act: Gate, gate_up: Tensor) -> Tensor:
    """Return `h` (rows, width) of `[g; u]` (rows, 2 * width)."""
    if isinstance(act, OwnGate):
        return act.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return act(gate) * up


def _gate(act: Gate, gate_up: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return `h`, and the map of its gradient, which may be overwritten, to that of `gate_up`."""
    if isinstance(act, OwnGate):
        return _differentiable(act.apply, gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    if is_silu(act):
        activated, dact = F.silu(gate), lambda grad: torch.ops.aten.silu_backward(grad, gate)
    else:
        activated, dact = _differentiable(act, gate)
    return activated * up, lambda dh: torch.cat([dact(dh * up), dh.mul_(activated)], dim=-1)


def _differentiable(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the value of `function` at `x`, and the map of its gradient to that of `x`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        out = function(leaf)
    return out.detach(), lambda grad: torch.autograd.grad(out, leaf, grad)[0]


def experts_forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute an experts module: `hidden` (tokens, hidden), `index`, `weights` (tokens, top_k).

    The signature is that of transformers' experts interface, and its flags on the module tell the
    layout of the weights. With a true `weighs_input` a router's weight multiplies an expert's
    input rather than its output.
    """
    state: ExpertState = getattr(module, STATE, None) or ExpertState()
    if state.valid is not None:
        index = index.masked_fill(~state.valid.unsqueeze(1), int(module.num_experts))  # pyright: ignore
    still = state.without(index, weights) if state.without and torch.is_grad_enabled() else None
    if getattr(module, "weighs_input", False):
        rows = (hidden.unsqueeze(1) * weights.unsqueeze(2)).flatten(0, 1)
        still = None if still is None else still.reshape(-1, 1)
        ones = torch.ones_like(rows[:, :1])
        out = _mixed(module, state, rows, ones, index.reshape(-1, 1), still)
        out = out.view(*index.shape, -1).sum(1)
    else:
        out = _mixed(module, state, hidden, weights, index, still)
    return out if state.rescaler is None else out * state.factor.to(out.dtype)


def _mixed(
    module: nn.Module,
    state: ExpertState,
    hidden: Tensor,
    weights: Tensor,
    index: Tensor,
    still: Tensor | None,
) -> Tensor:
    """Return the experts' output for `hidden`; choices of experts left out go to the merged one.

    Those that are `still`, bool (tokens, top_k), are computed without a gradient.
    """
    num_experts = int(module.num_experts)  # pyright: ignore[reportArgumentType]
    others = None
    if state.merged is not None:
        assert state.left_out is not None
        others = state.left_out[index]
        index = index.masked_fill(others, num_experts)
        if state.merged_count is not None:
            state.merged_count += others.sum()
    routing = (state.shared.route if state.shared else route)(index, num_experts)
    if state.counts is not None:
        state.counts += routing.counts
    if state.pages is not None:
        chosen = [e for e, rows in enumerate(routing.told().sizes or []) if rows]
        state.pages.chosen(chosen, index.shape[1])
    first, second = (getattr(module, name) for name in weight_names(module))
    own = Stacks(first, second, state.stored, biases_of(module))
    if still is None or not (unwaited(still) or still.any()):
        out = _computed(module, state, hidden, weights, routing, own, state.lora)
    else:
        with torch.no_grad():
            apart = route(index.masked_fill(~still, num_experts), num_experts)
            out = _computed(module, state, hidden, weights, apart, own, state.lora)
        routing = route(index.masked_fill(still, num_experts), num_experts)
        out = out + _computed(module, state, hidden, weights, routing, own, state.lora)
    if others is None or state.merged is None:
        return out
    # The weights of a token's choices add up, and it is computed once.
    summed = (weights * others).sum(1, keepdim=True)
    alone = route((~others.any(1, keepdim=True)).long(), 1)
    return out + _computed(module, state, hidden, summed, alone, state.merged.stacks, None)


def _computed(
    module: nn.Module,
    state: ExpertState,
    hidden: Tensor,
    weights: Tensor,
    routing: Routing | PairRouting,
    stacks: Stacks,
    lora: ExpertLoRA | None,
) -> Tensor:
    """Return the output of experts with these weights for routed tokens."""
    gate_up, down, stored, biases = stacks
    if getattr(module, "is_transposed", False):
        gate_up, down = gate_up.mT, down.mT
        stored = (stored[0].mT, stored[1].mT) if stored else None
    drop = state.drops.next() if lora and state.drops else None
    lora = lora or no_lora(gate_up, down, hidden.device)
    act = gate_of(module)
    plain = biases is None and drop is None and not state.recompute and is_silu(act)
    if state.fused and plain and isinstance(routing, Routing) and routing.sizes is None:
        from fedmoe.models.fused import FusedExperts, readable  # Triton need not be there

        frozen = stored or (gate_up, down)
        if all(map(readable, frozen)):
            return FusedExperts.apply(hidden, weights, *lora, routing, frozen)  # pyright: ignore
    factors = [factor.to(hidden.dtype) for factor in lora[:4]]
    if unwaited(hidden):
        factors = groupable(factors)
    out = SparseExperts.apply(
        hidden,
        weights.to(hidden.dtype),
        gate_up,
        down,
        *factors,
        lora.scale,
        routing,
        act,
        state.recompute,
        stored,
        biases,
        drop,
    )
    assert isinstance(out, Tensor)
    return out


def gate_of(module: nn.Module) -> Gate:
    """Return the activation of a module that gates as transformers does, or its own way to gate."""
    if not getattr(module, "has_gate", True):
        return OwnGate(module.act_fn)  # pyright: ignore
    own = own_gate(module)
    return module.act_fn if own is None else OwnGate(own)  # pyright: ignore


def is_silu(act: Gate) -> bool:
    """Return whether a gate's derivative needs no autograd within the backward pass."""
    return isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation"  # transformers' own


def weight_names(module: nn.Module) -> tuple[str, str]:
    """Return the names of a module's two weights: without a gate the first is `up_proj`."""
    return "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj", "down_proj"


def biases_of(module: nn.Module) -> Biases | None:
    """Return a module's biases, where it has some."""
    if not getattr(module, "has_bias", False):
        return None
    return Biases(*(getattr(module, f"{name}_bias") for name in weight_names(module)))


def register() -> None:
    """Make `fedmoe` a valid experts implementation in transformers."""
    from transformers.integrations.moe import ExpertsInterface  # seconds, which a config needs not

    ExpertsInterface.register(IMPLEMENTATION, experts_forward)

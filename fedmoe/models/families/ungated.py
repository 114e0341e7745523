"""Experts without a gate, each of two linear layers: stacked here for the fast path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedmoe.models.experts import experts_forward

if TYPE_CHECKING:
    from fedmoe.models.families.family import Family


class StackedExperts(nn.Module):
    """Experts `W2 act(W1 x)` with weights (experts, width, hidden) and (experts, hidden, width).

    They are called as transformers' experts interface calls those without a gate.
    """

    has_gate = is_concatenated = is_transposed = has_post_expert_norm = False

    def __init__(self, pairs: list[tuple[nn.Linear, nn.Linear]], act: nn.Module) -> None:
        super().__init__()
        self.num_experts, self.act_fn = len(pairs), act
        ups, downs = zip(*pairs, strict=True)
        self.up_proj, self.down_proj = (_stacked([x.weight for x in m]) for m in (ups, downs))
        self.has_bias = ups[0].bias is not None
        if self.has_bias:
            self.up_proj_bias = _stacked([x.bias for x in ups])
            self.down_proj_bias = _stacked([x.bias for x in downs])

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return experts_forward(self, hidden, index, weights)


def _stacked(tensors: list[Any]) -> nn.Parameter:
    return nn.Parameter(torch.stack([x.detach() for x in tensors]), requires_grad=False)


class UngatedBlock(nn.Module):
    """A sparse block in which tokens meet the experts that the router chose.

    Its further input, a mask of padding, is ignored: `ExpertState.valid` has it.
    """

    def __init__(self, router: nn.Module, experts: StackedExperts, by_sequence: bool) -> None:
        super().__init__()
        self.router, self.experts, self.by_sequence = router, experts, by_sequence

    def forward(self, hidden: Tensor, *_: object) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        _, weights, index = self.router(hidden if self.by_sequence else rows)
        return self.experts(rows, index, weights).view(hidden.shape)


def each_expert(experts: nn.Module, linears: tuple[str, str]) -> dict[str, nn.Module]:
    """Return single experts by name; there may be other modules among them."""
    return {name: m for name, m in experts.named_children() if hasattr(m, linears[0])}


def stack_experts(
    model: nn.Module,
    linears: tuple[str, str],
    act: str,
    prepare: Callable[[nn.Module, nn.Module], None] = lambda _router, _block: None,
    by_sequence: bool = False,
) -> None:
    """Stack every block of single experts, one after another: one layer exists twice at a time.

    Args:
        linears: names of an expert's two linear layers.
        prepare: makes a block's router return logits, weights and index.
        by_sequence: whether routers are handed (batch, length, hidden) rather than all rows.
    """
    for path, block in list(model.named_modules()):
        children = getattr(block, "experts", None)
        if isinstance(children, nn.ModuleDict | nn.ModuleList):
            experts = list(each_expert(children, linears).values())
            pairs = [tuple(e.get_submodule(name) for name in linears) for e in experts]
            stacked = StackedExperts(pairs, experts[0].get_submodule(act))  # pyright: ignore
            router = block.get_submodule("router")
            prepare(router, block)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, UngatedBlock(router, stacked, by_sequence))


def each_linear(weight: str, base: nn.Module, family: Family) -> list[str]:
    """Return the paths of the linear layers, expert by expert, of an experts module's weight."""
    path, _, weight = weight.rpartition(".")
    assert family.linears is not None
    first, second = family.linears
    linear = second if weight == "down_proj" else first
    experts = each_expert(base.get_submodule(path), family.linears)
    return [f"{path}.{expert}.{linear}" for expert in experts]

"""Outputs of single experts, LoRA included, outside the routing of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedmoe.models.experts import STATE, ExpertState, experts_forward


@contextmanager
def _bare(experts: nn.Module) -> Iterator[None]:
    """Without padding, counting and rescaling: those belong to the layer's own forward pass."""
    state: ExpertState | None = getattr(experts, STATE, None)
    if state is None:
        yield
        return
    setattr(experts, STATE, replace(state, valid=None, counts=None, rescaler=None))
    try:
        yield
    finally:
        setattr(experts, STATE, state)


def expert_output(experts: nn.Module, hidden: Tensor, expert: int) -> Tensor:
    """Return one expert's output for `hidden` (tokens, hidden); it can be differentiated."""
    index = torch.full((len(hidden), 1), expert, device=hidden.device)
    with _bare(experts):
        return experts_forward(experts, hidden, index, hidden.new_ones(len(hidden), 1))


@torch.no_grad()
def responses(experts: nn.Module, hidden: Tensor) -> Tensor:
    r"""$\lVert E_i(x_t) \rVert_2$ of every expert and token, float32 (tokens, experts).

    It costs a forward pass of the layer with all of its experts; one expert's outputs are in memory
    at a time.
    """
    number = int(experts.num_experts)  # pyright: ignore[reportArgumentType]
    norms = [expert_output(experts, hidden, e).float().norm(dim=-1) for e in range(number)]
    return torch.stack(norms, dim=-1)

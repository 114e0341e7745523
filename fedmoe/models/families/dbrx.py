"""DBRX: experts in three two-dimensional matrices, which are stacked here.

Its attention is one projection to queries, keys and values; `top_k` and the normalisation sit in
the block rather than in the router.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmoe.models.experts import experts_forward
from fedmoe.models.families.family import Family


class StackedExperts(nn.Module):
    """`DbrxExperts` with weights (experts, 2 width, hidden) and (experts, hidden, width)."""

    has_gate = is_concatenated = True
    has_bias = is_transposed = has_post_expert_norm = False

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        mlp, self.num_experts = experts.get_submodule("mlp"), experts.num_experts
        w1, v1, w2 = (
            getattr(mlp, name).detach().unflatten(0, (self.num_experts, -1))
            for name in ("w1", "v1", "w2")
        )
        self.gate_up_proj = nn.Parameter(torch.cat([w1, v1], dim=1), requires_grad=False)
        self.down_proj = nn.Parameter(w2.mT, requires_grad=False)
        self.act_fn = mlp.activation_fn

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return experts_forward(self, hidden, index, weights)


class TopKRouter(nn.Module):
    """`DbrxRouter` that also chooses, as the block does: top-k of a softmax, over its p-norm."""

    def __init__(self, router: nn.Module, top_k: int, norm: float | None) -> None:
        super().__init__()
        self.layer, self.top_k, self.norm = router.get_submodule("layer"), top_k, norm

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.layer(hidden)
        weights, index = logits.softmax(dim=1).topk(self.top_k, dim=-1)
        if self.norm is not None:
            weights = weights / torch.norm(weights, p=self.norm, dim=-1, keepdim=True)
        return logits, weights, index


class StackedBlock(nn.Module):
    """`DbrxFFN` on stacked experts."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.experts = StackedExperts(block.get_submodule("experts"))
        top_k, norm = int(block.top_k), block.moe_normalize_expert_weights  # pyright: ignore
        self.router = TopKRouter(block.get_submodule("router"), top_k, norm)  # pyright: ignore

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        _, weights, index = self.router(rows)
        return self.experts(rows, index, weights).view(hidden.shape)


def install(model: nn.Module) -> None:
    """Replace every block, one after another: one layer exists twice at a time."""
    for layer in model.get_submodule("transformer.blocks").children():
        if not isinstance(layer.ffn, StackedBlock):
            layer.ffn = StackedBlock(layer.get_submodule("ffn"))


FAMILY = Family(
    name="DBRX",
    model_type="dbrx",
    block="ffn",
    router="router",
    attention=("Wqkv", "attn.out_proj"),
    install=install,
    notes="transformers computes its experts in no other way than its own, gate and up apart: the "
    "original is met within rounding, which is coarse in bfloat16, and never to the bit",
    no_peft="DBRX keeps all experts in one two-dimensional matrix, for which PEFT has no factors "
    "per expert",
)

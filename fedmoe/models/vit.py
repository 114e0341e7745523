"""V-MoE (arXiv:2106.05974): transformers' ViT with sparse feed-forward layers, which it lacks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.modeling_vit import ViTMLP


class TopKRouter(nn.Module):
    """A softmax over all experts, the k largest, divided by their sum."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = int(config.num_experts_per_tok)
        self.classifier = nn.Linear(config.hidden_size, config.num_experts, bias=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, weights and index of tokens in a row."""
        logits = self.classifier(hidden.flatten(0, -2))
        weights, index = torch.softmax(logits.float(), dim=-1).topk(self.top_k, dim=-1)
        return logits, (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), index


class SparseMLP(nn.Module):
    """Experts of the dense layer's shape, each a separate module; see `SparseViT`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.router = TopKRouter(config)
        self.experts = nn.ModuleList(ViTMLP(config) for _ in range(config.num_experts))

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        _, weights, index = self.router(hidden)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            token, slot = (index == e).nonzero(as_tuple=True)
            out.index_add_(0, token, expert(rows[token]) * weights[token, slot].unsqueeze(1))
        return out.view(hidden.shape)


class SparseViT(ViTForImageClassification):
    r"""A ViT of which every `sparse_step`-th feed-forward layer is sparse.

    $$y = \sum_{e \in TopK(p)} \frac{p_e}{\sum_{j \in TopK(p)} p_j} FFN_e(x), \quad
      p = softmax(W x)$$

    Its config is ViT's with `num_experts`, `num_experts_per_tok` and `sparse_step`.

    Source: V-MoE (Riquelme et al. 2021, arXiv:2106.05974, eq. 1 and its "Every-2" models), without
    noise on the logits (`gating` has it) and without a capacity: no token is dropped. Weights are
    divided by their sum, as sparse upcycling does for vision (arXiv:2212.05055).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        settings: Any = config
        for i, layer in enumerate(self.vit.layers):
            if (i + 1) % settings.sparse_step == 0:
                layer.mlp = SparseMLP(settings)
        self.post_init()


def upcycled(
    dense: ViTForImageClassification,
    num_experts: int,
    top_k: int,
    sparse_step: int,
    generator: torch.Generator,
    router_std: float = 0.02,
) -> SparseViT:
    """Return a sparse model that computes `dense` at any k: experts are copies, routers random.

    Args:
        dense: the model to copy; it stays as it is.
        num_experts: of every sparse layer.
        top_k: experts per token.
        sparse_step: one layer in so many is sparse; 2 is every other.
        generator: of the routers' weights.
        router_std: their standard deviation.

    Source: sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055).
    """
    config: Any = copy.deepcopy(dense.config)
    config.num_experts, config.num_experts_per_tok = num_experts, top_k
    config.sparse_step, config.architectures = sparse_step, ["SparseViT"]
    sparse = SparseViT(config)
    weights = dense.state_dict()
    for i, layer in enumerate(sparse.vit.layers):
        if isinstance(layer.mlp, SparseMLP):
            path = f"vit.layers.{i}.mlp"
            for name, weight in dense.get_submodule(path).state_dict().items():
                del weights[f"{path}.{name}"]
                for e in range(num_experts):
                    weights[f"{path}.experts.{e}.{name}"] = weight
            shape = layer.mlp.router.classifier.weight.shape
            router = torch.randn(shape, generator=generator) * router_std
            weights[f"{path}.router.classifier.weight"] = router
    sparse.load_state_dict(weights)
    return sparse.eval()

"""Where the experts and the router of a sparse MoE sit, and whether its router honours top_k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from fedmoe.errors import ModelError

USUAL = {
    "has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True,
    "has_post_expert_norm": False,
}  # fmt: skip
"""What the fast path takes for granted of an experts module."""


@dataclass(frozen=True)
class MoELayer:
    """One sparse layer of a model."""

    path: str
    """Module path of the experts, e.g. `model.layers.0.mlp.experts`."""
    experts: nn.Module
    router_path: str
    router: nn.Module

    @property
    def num_experts(self) -> int:
        return int(self.experts.num_experts)  # pyright: ignore[reportArgumentType]


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """The sparse layers of `model`, first to last.

    An experts module is one whose weights are fused, `gate_up_proj` (experts, 2 width, hidden) and
    `down_proj` (experts, hidden, width); its router is the sibling that has a `top_k`.

    Raises:
        ModelError: there are none, or their weights are laid out in a way the fast path lacks.
    """
    layers = []
    for path, module in model.named_modules():
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            parent_path, _, _ = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            routers = [(n, m) for n, m in parent.named_children() if hasattr(m, "top_k")]
            if len(routers) != 1:
                raise ModelError(f"{path}: {len(routers)} routers beside the experts; expected 1")
            layers.append(MoELayer(path, module, f"{parent_path}.{routers[0][0]}", routers[0][1]))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} is not a sparse MoE with fused experts: no module has a "
            "three-dimensional gate_up_proj; expected a model such as OLMoE, Mixtral or Qwen3-MoE"
        )
    for layer in layers:
        _check_supported(layer)
    return layers


def _check_supported(layer: MoELayer) -> None:
    experts = layer.experts
    if not hasattr(experts, "has_gate"):  # set by transformers' decorator
        raise ModelError(
            f"{layer.path}: {type(experts).__name__} does not compute its experts through "
            "transformers' experts interface, so the fast path would never be called"
        )
    odd = [flag for flag, usual in USUAL.items() if getattr(experts, flag, usual) != usual]
    if getattr(type(experts), "_apply_gate", _default_apply_gate) is not _default_apply_gate:
        odd.append("_apply_gate")
    if odd:
        raise ModelError(
            f"{layer.path}: experts with {', '.join(odd)} unusual are not supported yet"
        )


def set_top_k(layers: list[MoELayer], top_k: int) -> None:
    """Let every router choose `top_k` experts per token."""
    for layer in layers:
        layer.router.top_k = top_k  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def check_top_k(layers: list[MoELayer], top_ks: set[int]) -> None:
    """Refuse a router that does not honour a changed `top_k` (Phi-MoE's silently ignores it)."""
    full = {layer.path: layer.router.top_k for layer in layers}
    try:
        for k in sorted(top_ks):
            set_top_k(layers, k)
            for layer in layers:
                _probe(layer, k)
    finally:
        for layer in layers:
            layer.router.top_k = full[layer.path]  # pyright: ignore[reportArgumentType]


def _probe(layer: MoELayer, top_k: int) -> None:
    weight = layer.router.weight
    assert isinstance(weight, torch.Tensor)
    hidden = torch.linspace(-1, 1, 4 * weight.shape[-1], dtype=weight.dtype, device=weight.device)
    _, weights, index = layer.router(hidden.view(4, -1))
    if index.shape != (4, top_k) or weights.shape != (4, top_k):
        raise ModelError(
            f"{layer.router_path} ({type(layer.router).__name__}) was asked for top_k = {top_k} "
            f"and chose {index.shape[-1]} experts: this family cannot be trained under a budget"
        )

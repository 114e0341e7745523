"""The sparse layers of a loaded model: experts, router, and whether the router honours top_k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.experts import weight_names
from fedmoe.models.families.family import Family
from fedmoe.models.private import own_gate


@dataclass(frozen=True)
class MoELayer:
    """One sparse layer of a model."""

    path: str
    """Module path of the experts, e.g. `model.layers.0.mlp.experts`."""
    experts: nn.Module
    router_path: str
    router: nn.Module
    block: nn.Module
    """The module with both."""

    @property
    def num_experts(self) -> int:
        """Number of its experts."""
        return int(self.experts.num_experts)  # pyright: ignore[reportArgumentType]

    @property
    def weight_names(self) -> tuple[str, str]:
        """Names of its experts' two weights."""
        return weight_names(self.experts)

    @property
    def top_k(self) -> int:
        """Number of experts that the router chooses now."""
        return int(self.router.top_k)  # pyright: ignore[reportArgumentType]

    @property
    def scorer(self) -> nn.Module:
        """The module whose `weight` (experts, hidden) gives the logits: the router, or in it."""
        if hasattr(self.router, "weight"):
            return self.router
        (linear,) = (m for m in self.router.children() if isinstance(m, nn.Linear))
        return linear

    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return (experts, out, in) of its experts' two weights, whatever their layout."""
        (e, out1, in1), (_, out2, in2) = (
            getattr(self.experts, name).shape for name in self.weight_names
        )
        if getattr(self.experts, "is_transposed", False):
            return (e, in1, out1), (e, in2, out2)
        return (e, out1, in1), (e, out2, in2)


def sparse_layers(model: nn.Module, family: Family) -> list[MoELayer]:
    """Return the sparse layers of `model`, first to last; layers may be dense in between.

    Raises:
        ModelError: there are none, they differ in experts or top_k, or their weights are laid out
            in a way the fast path lacks.
    """
    layers = []
    for path, module in model.named_modules():
        if isinstance(getattr(module, weight_names(module)[0], None), nn.Parameter):
            parent_path, _, _ = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            name = _router_name(path, parent, family)
            router = parent.get_submodule(name)
            layers.append(MoELayer(path, module, f"{parent_path}.{name}", router, parent))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} is not a sparse MoE with fused experts: no module has a "
            "three-dimensional gate_up_proj, or up_proj without a gate; expected a model such as "
            "OLMoE, Mixtral or Qwen3-MoE"
        )
    for layer in layers:
        _check_supported(layer, family)
    sizes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(sizes) > 1:
        raise ModelError(
            f"{type(model).__name__}: layers with unlike (experts, top_k) {sorted(sizes)}; one "
            "budget for all layers needs them alike"
        )
    return layers


def _router_name(path: str, parent: nn.Module, family: Family) -> str:
    names = [n for n, m in parent.named_children() if hasattr(m, "top_k")]
    if family.listed:
        names = [name for name in names if name == family.router]
    if len(names) != 1:
        raise ModelError(f"{path}: {len(names)} routers beside the experts; expected 1")
    return names[0]


def _check_supported(layer: MoELayer, family: Family) -> None:
    """Refuse experts that are not laid out and applied as in the family's file."""
    experts, form = layer.experts, family.form
    if not hasattr(experts, "has_gate"):  # set by transformers' decorator
        raise ModelError(
            f"{layer.path}: {type(experts).__name__} does not compute its experts through "
            "transformers' experts interface, so the fast path would never be called"
        )
    usual = {
        "has_gate": form.gated,
        "has_bias": form.bias,
        "is_transposed": form.transposed,
        "has_post_expert_norm": False,
        "weighs_input": form.weighs_input,
    }
    odd = [flag for flag, expected in usual.items() if getattr(experts, flag, False) != expected]
    if (own_gate(experts) is not None) != form.own_gate:
        odd.append("_apply_gate")
    if odd:
        raise ModelError(
            f"{layer.path}: experts with {', '.join(odd)} unlike what is known of {family.name} "
            "are not supported"
        )


def set_top_k(layers: Sequence[MoELayer], top_k: int) -> None:
    """Make every router choose `top_k` experts per token."""
    for layer in layers:
        layer.router.top_k = top_k  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def check_top_k(layers: list[MoELayer], top_ks: set[int]) -> None:
    """Refuse a router that does not honour a changed `top_k`."""
    full = [layer.top_k for layer in layers]
    try:
        for k in sorted(top_ks):
            set_top_k(layers, k)
            for layer in layers:
                _probe(layer, k)
    finally:
        for layer, top_k in zip(layers, full, strict=True):
            set_top_k([layer], top_k)


def _probe(layer: MoELayer, top_k: int) -> None:
    """Send four tokens through the block, which hands its router all that it needs."""
    weight, scorer = getattr(layer.experts, layer.weight_names[0]), layer.scorer.weight
    assert isinstance(weight, Tensor)
    assert isinstance(scorer, Tensor)
    # The router's width and place: experts may work in a narrower space, and be elsewhere.
    width = scorer.shape[1]
    hidden = torch.linspace(-1, 1, 4 * width, dtype=weight.dtype, device=scorer.device)
    outputs: list[Any] = []
    hook = layer.router.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    try:
        layer.block(hidden.view(1, 4, width))
    finally:
        hook.remove()
    _, weights, index = outputs[-1]
    if index.shape != (4, top_k) or weights.shape != (4, top_k):
        raise ModelError(
            f"{layer.router_path} ({type(layer.router).__name__}) got top_k = {top_k} "
            f"and chose {index.shape[-1]} experts: this family cannot be trained under a budget"
        )

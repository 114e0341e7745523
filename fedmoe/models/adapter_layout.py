"""The layout of what LoRA adds to a model, and the linear layers that it adapts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fedmoe.adapter import Layout
from fedmoe.errors import ModelError
from fedmoe.models.families import MoELayer

if TYPE_CHECKING:
    from fedmoe.models.adapted import LoRA


def attention_paths(
    model: nn.Module, names: tuple[str, ...], wanted: bool | tuple[str, ...]
) -> list[str]:
    """Return the paths of linear layers that end in one of `names`, all of them or the `wanted`."""
    if not wanted:
        return []
    linears = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = {name: [path for path in linears if path.endswith(f".{name}")] for name in names}
    there = [name for name, paths in found.items() if paths]
    missing = [name for name in (wanted if wanted is not True else ()) if name not in there]
    if missing or not there:
        known = f"are {', '.join(there)}" if there else "is none"
        raise ModelError(
            f"{type(model).__name__}: no attention projection is called "
            f"{', '.join(missing or names)}; there {known}"
            "; set adapter.attention to false to train experts alone, or to some that there are"
        )
    chosen = {path for name in (there if wanted is True else wanted) for path in found[name]}
    return [path for path in linears if path in chosen]


def adapter_layout(
    model: nn.Module, layers: list[MoELayer], settings: LoRA, adapted: list[str]
) -> Layout:
    """Return the layout: expert factors layer by layer, then routers, then attention."""
    rank, tensors = settings.rank, []
    for i, layer in enumerate(layers):
        shapes = zip(layer.weight_names, layer.shapes(), strict=True)
        for weight, (num_experts, out, into) in shapes:
            tensors.append((f"{layer.path}.{weight}.A", (num_experts, rank, into), i))
            tensors.append((f"{layer.path}.{weight}.B", (num_experts, out, rank), i))
    if settings.router:
        for layer in layers:
            tensors.append((f"{layer.router_path}.shift", tuple(layer.scorer.weight.shape), None))  # pyright: ignore
    for path in adapted:
        linear = model.get_submodule(path)
        tensors.append((f"{path}.A", (rank, linear.in_features), None))
        tensors.append((f"{path}.B", (linear.out_features, rank), None))
    return Layout.of(tensors, len(layers), layers[0].num_experts, rank, settings.alpha)

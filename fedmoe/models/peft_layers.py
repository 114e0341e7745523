"""PEFT's layers: the weight that each adapts, and how it takes it."""

from __future__ import annotations

from peft.tuners.lora.layer import LoraLayer

NAME = "default"
"""PEFT's name of the adapter that there is one of."""


def target_of(path: str, layer: LoraLayer) -> str:
    """Return the weight that a PEFT layer adapts, by our name."""
    parameter = getattr(layer, "parameter_name", None)
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return f"{path}.{parameter}" if parameter else path


def takes_transposed(layer: LoraLayer) -> bool:
    """Return whether PEFT takes the weights for (experts, in, out), as the module tells it."""
    return bool(getattr(layer.get_base_layer(), "is_transposed", False))

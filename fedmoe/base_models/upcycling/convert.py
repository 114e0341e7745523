"""Conversion of a dense model: only its feed-forward layers become other weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from fedmoe.base_models.upcycling.copies import Copy, copy_config, copy_layer
from fedmoe.base_models.upcycling.dense import DenseFFN, carried
from fedmoe.base_models.upcycling.split import Split, check_width, split_config, split_layer
from fedmoe.errors import ModelError
from fedmoe.seeds import numpy_rng

Tick = Callable[[int, int], None]


def check_method(method: Split | Copy, dense: PreTrainedModel) -> None:
    """Refuse a dense model that the method's sparse class cannot represent.

    Raises:
        ModelError: the neurons cannot be split evenly; biases that Mixtral lacks.
    """
    if isinstance(method, Split):
        check_width(method, int(dense.config.intermediate_size))
    elif has_bias(dense):
        raise ModelError(
            f"method.name 'copy' makes a Mixtral model, whose attention has no biases, and this "
            f"{dense.config.model_type!r} model has them; use method.name=split"
        )


def has_bias(dense: PreTrainedModel) -> bool:
    """Return whether queries, keys and values have biases."""
    return dense.get_submodule("model.layers.0.self_attn.q_proj").bias is not None


def convert(
    method: Split | Copy, dense: PreTrainedModel, inputs: Sequence[Tensor], seed: int, tick: Tick
) -> PreTrainedModel:
    """Return the sparse model, in the dense one's dtype.

    `inputs` has the inputs (tokens, hidden) of each layer's feed-forward part, first to last; a
    copy needs none.
    """
    model = _empty(method, dense)
    state = {name: w for name, w in dense.state_dict().items() if ".mlp." not in name}
    layers: Any = dense.get_submodule("model.layers")
    for i, layer in enumerate(layers):
        ffn = DenseFFN.of(layer, dense.config.hidden_act)
        rng = numpy_rng(seed, "upcycle", "layer", i)
        if isinstance(method, Split):
            tensors = split_layer(ffn, inputs[i], method, rng)
        else:
            tensors = copy_layer(ffn, method, rng)
        state |= {f"model.layers.{i}.mlp.{name}": w for name, w in tensors.items()}
        tick(i + 1, len(layers))
    model.load_state_dict(state)
    model.generation_config = dense.generation_config
    return model.eval().requires_grad_(False)


def _empty(method: Split | Copy, dense: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the sparse class with the dense one's sizes and unset weights."""
    sizes, width = carried(dense.config), int(dense.config.intermediate_size)
    if isinstance(method, Split):
        sizes |= split_config(method, width) | {"qkv_bias": has_bias(dense)}
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes))
    return MixtralForCausalLM(MixtralConfig(**sizes | copy_config(method, width)))

"""The dense models that can be upcycled, their layers, and refusals of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from fedmoe.errors import ModelError

KINDS = ("llama", "mistral", "qwen2")
"""`model_type` of the models whose attention and feed-forward layers are Llama's."""
CARRIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""Settings with the same meaning in the dense and in the sparse config."""


@dataclass(frozen=True, eq=False)
class DenseFFN:
    """One dense layer `y = D (act(G x) * U x)`; a neuron is a row of G and U, a column of D."""

    gate: Tensor  # (neurons, hidden)
    up: Tensor  # (neurons, hidden)
    down: Tensor  # (hidden, neurons)
    act: str
    """Name of the activation, as `hidden_act` spells it."""

    @staticmethod
    def of(layer: nn.Module, act: str) -> DenseFFN:
        """Return the feed-forward part of one decoder layer."""
        mlp: Any = layer.mlp
        return DenseFFN(
            mlp.gate_proj.weight.detach(),
            mlp.up_proj.weight.detach(),
            mlp.down_proj.weight.detach(),
            act,
        )

    def neurons(self, x: Tensor) -> Tensor:
        """Return `act(G x) * U x`, (tokens, neurons)."""
        return ACT2FN[self.act](F.linear(x, self.gate)) * F.linear(x, self.up)


def check_llama_like(source: str, config: PreTrainedConfig) -> None:
    """Refuse a model that the sparse classes cannot reproduce.

    Raises:
        ModelError: another architecture, biases or a sliding window that would be lost.
    """
    kind = config.model_type
    if kind not in KINDS:
        raise ModelError(
            f"source {source!r} is a {kind!r} model; only dense models with Llama's layers can be "
            f"upcycled: {', '.join(KINDS)}"
        )
    faults = [
        f"{name} is {getattr(config, name)}"
        for name in ("attention_bias", "mlp_bias")
        if getattr(config, name, False)
    ]
    if _window(config):
        faults.append(f"a sliding window of {_window(config)} tokens")
    if faults:
        raise ModelError(
            f"source {source!r} has parts that no sparse class here has: {', '.join(faults)}"
        )


def _window(config: PreTrainedConfig) -> int | None:
    if not getattr(config, "use_sliding_window", True):  # Qwen2 names a window it does not use
        return None
    return getattr(config, "sliding_window", None)


def has_bias(dense: PreTrainedModel) -> bool:
    """Return whether queries, keys and values have biases."""
    return dense.get_submodule("model.layers.0.self_attn.q_proj").bias is not None


def carried(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings that the sparse config takes over from the dense one."""
    heads = config.hidden_size // config.num_attention_heads
    return {
        **{name: getattr(config, name) for name in CARRIED},
        # Qwen2-MoE's config does not declare it, but its attention reads it.
        "head_dim": getattr(config, "head_dim", None) or heads,
    }

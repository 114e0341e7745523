"""Families that llama.cpp computes, and the settings that it has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe.errors import ModelError

LAST = "export with --for merged, and convert that by llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Architecture:
    """A family as llama.cpp computes it."""

    name: str
    """In gguf's `MODEL_ARCH`."""
    fixed: Mapping[str, Any]
    """Settings that llama.cpp has written into its code, by their names in the config."""
    permuted: bool = False
    """Rows of queries and keys are in Meta's order, pairs of a rotation side by side."""


PLAIN = {"hidden_act": "silu", "mlp_only_layers": [], "decoder_sparse_step": 1}
"""Settings that it has for all of them."""
ARCHITECTURES = {
    "olmoe": Architecture("OLMOE", {"norm_topk_prob": False, "clip_qkv": None}),
    "qwen2_moe": Architecture("QWEN2MOE", {"norm_topk_prob": False, "use_sliding_window": False}),
    "qwen3_moe": Architecture("QWEN3MOE", {"norm_topk_prob": True, "use_sliding_window": False}),
    "mixtral": Architecture("LLAMA", {"sliding_window": None}, permuted=True),
}
"""By `model_type`."""


def architecture_of(model_type: str) -> Architecture:
    """Return how llama.cpp computes a family.

    Raises:
        ModelError: it is not known to.
    """
    if model_type not in ARCHITECTURES:
        raise ModelError(f"GGUF is written of {', '.join(ARCHITECTURES)}; {model_type}: {LAST}")
    return ARCHITECTURES[model_type]

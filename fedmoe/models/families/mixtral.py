"""Mixtral (arXiv:2401.04088): eight large experts, two per token."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="Mixtral",
    model_type="mixtral",
    tiny={"num_local_experts": 8},
    sizes=(
        Size(
            "Mixtral 8x7B",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "vocab_size": 32000,
            },
            "https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json",
            "46.7 B, 12.9 B active",
        ),
    ),
)

"""OLMoE (arXiv:2409.02060): many small experts; weights are not normalised as published."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="OLMoE",
    model_type="olmoe",
    normalised="config",
    tiny={"num_experts": 8},
    sizes=(
        Size(
            "OLMoE-1B-7B",
            {
                "num_experts": 64,
                "num_experts_per_tok": 8,
                "hidden_size": 2048,
                "intermediate_size": 1024,
                "num_hidden_layers": 16,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
                "vocab_size": 50304,
            },
            "https://huggingface.co/allenai/OLMoE-1B-7B-0924/blob/main/config.json",
            "6.9 B, 1.3 B active",
        ),
    ),
)

"""Qwen1.5-MoE and Qwen2-MoE: small experts beside a gated shared one."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="Qwen2-MoE",
    model_type="qwen2_moe",
    normalised="config",
    shared=True,
    tiny={"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    sizes=(
        Size(
            "Qwen1.5-MoE-A2.7B",
            {
                "hidden_size": 2048,
                "moe_intermediate_size": 1408,
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "shared_expert_intermediate_size": 5632,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
                "vocab_size": 151936,
            },
            "https://huggingface.co/Qwen/Qwen1.5-MoE-A2.7B/blob/main/config.json",
            "14.3 B, 2.7 B active",
        ),
    ),
)

"""Qwen3-MoE (arXiv:2505.09388): 128 small experts, none shared."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="Qwen3-MoE",
    model_type="qwen3_moe",
    normalised="config",
    tiny={"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
    sizes=(
        Size(
            "Qwen3-30B-A3B",
            {
                "hidden_size": 2048,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "vocab_size": 151936,
                "norm_topk_prob": True,
            },
            "https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json",
            "30.5 B, 3.3 B active",
        ),
    ),
)

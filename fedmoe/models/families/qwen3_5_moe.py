"""Qwen3.5-MoE's language model: linear and full attention, a gated shared expert."""

from __future__ import annotations

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen3.5-MoE",
    model_type="qwen3_5_moe_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    shared=True,
    tiny={
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
)

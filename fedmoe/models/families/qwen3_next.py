"""Qwen3-Next: layers of linear attention between layers of full attention."""

from __future__ import annotations

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen3-Next",
    model_type="qwen3_next",
    attention=(*ATTENTION, "in_proj_qkvz", "linear_attn.out_proj"),
    normalised="config",
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

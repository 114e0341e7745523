"""Qwen3.5-MoE's language model: linear and full attention, a gated shared expert."""

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen3.5-MoE",
    model_type="qwen3_5_moe_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    shared=True,
)

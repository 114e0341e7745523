"""Qwen1.5-MoE and Qwen2-MoE: small experts beside a gated shared one."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="Qwen2-MoE", model_type="qwen2_moe", normalised="config", shared=True)

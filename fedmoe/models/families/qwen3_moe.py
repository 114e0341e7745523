"""Qwen3-MoE (arXiv:2505.09388): 128 small experts, none shared."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="Qwen3-MoE", model_type="qwen3_moe", normalised="config")

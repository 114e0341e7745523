"""Mellum 2: Qwen3-MoE's routing with sliding windows."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Mellum",
    model_type="mellum",
    normalised="config",
    tiny={"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
)

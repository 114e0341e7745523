"""Hunyuan-A13B: a linear layer inside the router, in fp32; a shared expert."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Hunyuan-A13B",
    model_type="hunyuan_v1_moe",
    shared=True,
    tiny={"num_experts": 8, "moe_topk": 4, "head_dim": 8},
)

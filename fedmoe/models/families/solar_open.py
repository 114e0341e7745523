"""Solar Open: DeepSeek-V3's routing, sparse from the first layer."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Solar Open",
    model_type="solar_open",
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    tiny={
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "head_dim": 8,
    },
)

"""EXAONE-MoE: DeepSeek-V3's routing with sliding windows."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="EXAONE-MoE",
    model_type="exaone_moe",
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    tiny={
        "num_experts": 8,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "head_dim": 8,
    },
)

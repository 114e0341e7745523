"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's routing with grouped-query attention."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="dots.llm1",
    model_type="dots1",
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    tiny={
        "head_dim": 8,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "first_k_dense_replace": 1,
    },
)

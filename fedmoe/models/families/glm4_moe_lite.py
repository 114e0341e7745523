"""GLM's light MoE: DeepSeek-V3's routing and latent attention."""

from __future__ import annotations

from fedmoe.models.families.family import LATENT_ATTENTION, Family

FAMILY = Family(
    name="GLM-4.7-Flash",
    model_type="glm4_moe_lite",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    tiny={
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "first_k_dense_replace": 1,
    },
)

"""Hunyuan 4: several residual streams, a clamped gate, DeepSeek-V3.2's attention."""

from __future__ import annotations

from fedmoe.models.families.family import LATENT_ATTENTION, Family, Form

FAMILY = Family(
    name="Hunyuan 4",
    model_type="hy_v4",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    notes="the indexer that picks the tokens attention sees stays frozen",
    form=Form(own_gate=True),
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
        "routed_scaling_factor": 2.0,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 8,
        "head_dim": 16,
        "hc_mult": 2,
    },
)

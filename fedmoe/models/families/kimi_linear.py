"""Kimi Linear (arXiv:2510.26692): delta attention between latent attention."""

from __future__ import annotations

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Kimi Linear",
    model_type="kimi_linear",
    attention=(*ATTENTION, "kv_a_proj_with_mqa", "kv_b_proj"),
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    tiny={
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_local_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
)

"""LFM2-MoE: short convolutions between attention layers, a bias to choose."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="LFM2-MoE",
    model_type="lfm2_moe",
    block="feed_forward",
    attention=("q_proj", "k_proj", "v_proj", "self_attn.out_proj"),
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    notes="LoRA on its attention layers, none on convolutions",
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "num_dense_layers": 0,
        "routed_scaling_factor": 2.0,
        "layer_types": ["conv", "full_attention"],
    },
)

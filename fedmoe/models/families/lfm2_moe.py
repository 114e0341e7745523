"""LFM2-MoE: short convolutions between attention layers, a bias to choose."""

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
)

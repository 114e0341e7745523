"""DeepSeek-V2 and V2.5 (arXiv:2405.04434): latent attention, shared experts, a dense start."""

from fedmoe.models.families.family import LATENT_ATTENTION, Family

FAMILY = Family(
    name="DeepSeek-V2",
    model_type="deepseek_v2",
    attention=LATENT_ATTENTION,
    normalised="never",
    scaled="routed_scaling_factor",
    groups=True,
    shared=True,
)

"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, groups, a bias that balances the choice."""

from fedmoe.models.families.family import LATENT_ATTENTION, Family

FAMILY = Family(
    name="DeepSeek-V3",
    model_type="deepseek_v3",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
)

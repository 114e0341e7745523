"""Hunyuan 3: sigmoid scores, a bias that balances the choice, kept beside the router."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Hunyuan 3",
    model_type="hy_v3",
    scores="sigmoid",
    scaled="router_scaling_factor",
    corrected=True,
    shared=True,
)

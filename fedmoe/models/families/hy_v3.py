"""Hunyuan 3: sigmoid scores, a bias outside the router that balances the choice."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Hunyuan 3",
    model_type="hy_v3",
    scores="sigmoid",
    scaled="router_scaling_factor",
    corrected=True,
    shared=True,
)

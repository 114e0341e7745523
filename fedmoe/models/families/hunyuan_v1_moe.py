"""Hunyuan-A13B: a linear layer inside the router, in fp32; a shared expert."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="Hunyuan-A13B", model_type="hunyuan_v1_moe", shared=True)

"""OLMoE (arXiv:2409.02060): many small experts; weights are not normalised as published."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="OLMoE", model_type="olmoe", normalised="config")

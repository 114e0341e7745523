"""Flint: sigmoid scores without a correction, attention in windows, a shared expert."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Flint", model_type="flint", scores="sigmoid", normalised="config", shared=True
)

"""Kolibri: sigmoid scores, chosen by corrected logits, and a shared expert."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Kolibri",
    model_type="kolibri1",
    scores="sigmoid",
    normalised="config",
    corrected=True,
    shared=True,
)

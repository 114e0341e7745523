"""Laguna: gated attention in windows, sigmoid scores, a shared expert."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Laguna",
    model_type="laguna",
    scores="sigmoid",
    corrected=True,
    shared=True,
    notes="its constant factor is on the output of a sparse layer, not on its weights",
)

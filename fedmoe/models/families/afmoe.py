"""Arcee's AFMoE (Trinity): sigmoid scores, a bias to choose, gated attention."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="AFMoE",
    model_type="afmoe",
    router="router",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    shared=True,
)

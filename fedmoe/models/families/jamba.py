"""Jamba (arXiv:2403.19887, 2408.12570): Mamba and attention layers, experts every other layer."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Jamba",
    model_type="jamba",
    block="feed_forward",
    router="router",
    normalised="never",
    notes="LoRA on its attention layers, none on Mamba layers",
    step=8,
)

"""Granite-MoE with a dense layer beside the experts."""

from dataclasses import replace

from fedmoe.models.families.granitemoe import FAMILY as GRANITEMOE

FAMILY = replace(
    GRANITEMOE,
    name="Granite-MoE with a shared expert",
    model_type="granitemoeshared",
    shared=True,
    notes="the shared expert sits beside the sparse block",
)

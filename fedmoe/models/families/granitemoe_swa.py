"""Granite-MoE with attention in windows and a dense layer beside the experts."""

from dataclasses import replace

from fedmoe.models.families.granitemoe import FAMILY as GRANITEMOE

FAMILY = replace(
    GRANITEMOE, name="Granite-MoE with windows", model_type="granitemoe_swa", shared=True
)

"""Granite 4 hybrid: Mamba-2 and attention layers, experts beside a dense layer."""

from dataclasses import replace

from fedmoe.models.families.granitemoe import FAMILY as GRANITEMOE

FAMILY = replace(
    GRANITEMOE,
    name="Granite 4 hybrid",
    model_type="granitemoehybrid",
    shared=True,
    notes="LoRA on its attention layers, none on Mamba layers",
    step="mamba_chunk_size",
)

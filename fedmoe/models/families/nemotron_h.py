"""Nemotron-H (arXiv:2512.20848): a layer is Mamba-2, attention, dense or experts; no gates."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION, Form

FAMILY = replace(
    DEEPSEEK_V3,
    name="Nemotron-H",
    model_type="nemotron_h",
    block="mixer",
    attention=ATTENTION,
    form=Form(gated=False),
    notes="LoRA on its attention layers, none on Mamba layers, nor on projections to and from the "
    "narrower space that experts may have; layers for multi-token prediction are not loaded",
    step="chunk_size",
)

"""Kimi Linear (arXiv:2510.26692): delta attention between latent attention."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(
    DEEPSEEK_V3,
    name="Kimi Linear",
    model_type="kimi_linear",
    attention=(*ATTENTION, "kv_a_proj_with_mqa", "kv_b_proj"),
)

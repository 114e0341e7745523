"""A.X K2: latent attention with a gate and an indexer, DeepSeek-V3's routers."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v32 import FAMILY as DEEPSEEK_V32
from fedmoe.models.families.family import LATENT_ATTENTION

FAMILY = replace(
    DEEPSEEK_V32, name="A.X K2", model_type="axk2", attention=(*LATENT_ATTENTION, "q_gate_proj")
)

"""Hunyuan 4: several residual streams, a clamped gate, DeepSeek-V3.2's attention."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v32 import FAMILY as DEEPSEEK_V32
from fedmoe.models.families.family import Form

FAMILY = replace(DEEPSEEK_V32, name="Hunyuan 4", model_type="hy_v4", form=Form(own_gate=True))

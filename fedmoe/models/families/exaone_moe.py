"""EXAONE-MoE: DeepSeek-V3's routing with sliding windows."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(DEEPSEEK_V3, name="EXAONE-MoE", model_type="exaone_moe", attention=ATTENTION)

"""MiMo-V2-Flash (arXiv:2601.02780): windows with sinks, DeepSeek-V3's routers."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(
    DEEPSEEK_V3, name="MiMo-V2-Flash", model_type="mimo_v2_flash", attention=ATTENTION, shared=False
)

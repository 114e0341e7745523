"""Solar Open: DeepSeek-V3's routing, sparse from the first layer."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(DEEPSEEK_V3, name="Solar Open", model_type="solar_open", attention=ATTENTION)

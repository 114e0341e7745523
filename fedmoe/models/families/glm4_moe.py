"""GLM-4.5 (arXiv:2508.06471): DeepSeek-V3's routing with grouped-query attention."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(DEEPSEEK_V3, name="GLM-4.5", model_type="glm4_moe", attention=ATTENTION)

"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's routing with grouped-query attention."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from fedmoe.models.families.family import ATTENTION

FAMILY = replace(DEEPSEEK_V3, name="dots.llm1", model_type="dots1", attention=ATTENTION)

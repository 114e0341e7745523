"""GLM-5: DeepSeek-V3.2's layers under another name."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v32 import FAMILY as DEEPSEEK_V32

FAMILY = replace(DEEPSEEK_V32, name="GLM-5", model_type="glm_moe_dsa")

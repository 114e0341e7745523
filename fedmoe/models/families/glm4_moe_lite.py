"""GLM's light MoE: DeepSeek-V3's routing and latent attention."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(DEEPSEEK_V3, name="GLM-4.7-Flash", model_type="glm4_moe_lite")

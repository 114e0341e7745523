"""A.X K1: DeepSeek-V3 with a norm behind its sparse layers."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(DEEPSEEK_V3, name="A.X K1", model_type="axk1")

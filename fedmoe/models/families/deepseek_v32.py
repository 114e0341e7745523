"""DeepSeek-V3.2: DeepSeek-V3 whose attention sees the tokens that an indexer picks."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(
    DEEPSEEK_V3,
    name="DeepSeek-V3.2",
    model_type="deepseek_v32",
    notes="the indexer that picks the tokens attention sees stays frozen",
)

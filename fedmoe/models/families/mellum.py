"""Mellum 2: Qwen3-MoE's routing with sliding windows."""

from dataclasses import replace

from fedmoe.models.families.qwen3_moe import FAMILY as QWEN3_MOE

FAMILY = replace(QWEN3_MOE, name="Mellum", model_type="mellum")

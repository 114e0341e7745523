"""Qwen4's language model: residual streams, linear attention, attention with an indexer."""

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen4 experimental",
    model_type="qwen4_exp_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    normalised="config",
    shared=True,
    notes="text alone; the indexer that picks the tokens attention sees stays frozen",
)

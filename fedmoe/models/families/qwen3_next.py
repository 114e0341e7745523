"""Qwen3-Next: layers of linear attention between layers of full attention."""

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen3-Next",
    model_type="qwen3_next",
    attention=(*ATTENTION, "in_proj_qkvz", "linear_attn.out_proj"),
    normalised="config",
    shared=True,
)

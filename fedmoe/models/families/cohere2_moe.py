"""Command A+: sparse layers beside attention rather than behind it, scaled logits."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Command A+",
    model_type="cohere2_moe",
    scores="softmax of the chosen",
    shared=True,
    scale_logits=lambda config, logits: logits * config.logit_scale,
)

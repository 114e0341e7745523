"""Granite-MoE: a softmax over the chosen logits alone; logits are divided by a constant."""

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Granite-MoE",
    model_type="granitemoe",
    block="block_sparse_moe",
    router="router",
    scores="softmax of the chosen",
    scale_logits=lambda config, logits: logits / config.logits_scaling,
)

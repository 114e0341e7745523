"""Granite-MoE with attention in windows and a dense layer beside the experts."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Granite-MoE with windows",
    model_type="granitemoe_swa",
    block="block_sparse_moe",
    router="router",
    scores="softmax of the chosen",
    shared=True,
    scale_logits=lambda config, logits: logits / config.logits_scaling,
    tiny={
        "num_local_experts": 8,
        "logits_scaling": 4.0,
        "shared_intermediate_size": 16,
        "sliding_window": 4,
    },
)

"""Command A+: sparse layers beside attention rather than behind it, scaled logits."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Command A+",
    model_type="cohere2_moe",
    scores="softmax of the chosen",
    shared=True,
    scale_logits=lambda config, logits: logits * config.logit_scale,
    tiny={
        "num_experts": 8,
        "num_shared_experts": 1,
        "head_dim": 8,
        "sliding_window": 4,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
)

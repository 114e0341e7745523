"""Flint: sigmoid scores without a correction, attention in windows, a shared expert."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Flint",
    model_type="flint",
    scores="sigmoid",
    normalised="config",
    shared=True,
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "sliding_window": 4,
        "num_hidden_layers": 3,
        "mlp_only_layers": [0],
    },
)

"""Laguna: gated attention in windows, sigmoid scores, a shared expert."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Laguna",
    model_type="laguna",
    scores="sigmoid",
    corrected=True,
    shared=True,
    notes="its constant factor is on the output of a sparse layer, not on its weights",
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "sliding_window": 4,
        "num_hidden_layers": 3,
    },
)

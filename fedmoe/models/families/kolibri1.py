"""Kolibri: sigmoid scores, chosen by corrected logits, and a shared expert."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Kolibri",
    model_type="kolibri1",
    scores="sigmoid",
    normalised="config",
    corrected=True,
    shared=True,
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "sliding_window": 4,
    },
)

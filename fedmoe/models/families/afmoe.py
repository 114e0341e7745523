"""Arcee's AFMoE (Trinity): sigmoid scores, a bias to choose, gated attention."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="AFMoE",
    model_type="afmoe",
    router="router",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    shared=True,
    tiny={
        "num_experts": 8,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "route_scale": 2.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)

"""Hunyuan 3: sigmoid scores, a bias that balances the choice, kept beside the router."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Hunyuan 3",
    model_type="hy_v3",
    scores="sigmoid",
    scaled="router_scaling_factor",
    corrected=True,
    shared=True,
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
)

"""ERNIE 4.5: a softmax with a bias to choose, normalised over the chosen."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="ERNIE 4.5",
    model_type="ernie4_5_moe",
    corrected=True,
    shared=True,
    tiny={
        "moe_num_experts": 8,
        "moe_k": 4,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    },
)

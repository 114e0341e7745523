"""Granite 4 hybrid: Mamba-2 and attention layers, experts beside a dense layer."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="Granite 4 hybrid",
    model_type="granitemoehybrid",
    block="block_sparse_moe",
    router="router",
    scores="softmax of the chosen",
    shared=True,
    notes="LoRA on its attention layers, none on Mamba layers",
    scale_logits=lambda config, logits: logits / config.logits_scaling,
    step="mamba_chunk_size",
    tiny={
        "num_local_experts": 8,
        "logits_scaling": 4.0,
        "shared_intermediate_size": 16,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention"],
    },
)

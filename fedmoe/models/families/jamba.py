"""Jamba (arXiv:2403.19887, 2408.12570): Mamba and attention layers, experts every other layer."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="Jamba",
    model_type="jamba",
    block="feed_forward",
    router="router",
    normalised="never",
    notes="LoRA on its attention layers, none on Mamba layers",
    step=8,
    tiny={
        "num_experts": 8,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    sizes=(
        Size(
            "Jamba 1.5 Large",
            {
                "hidden_size": 8192,
                "intermediate_size": 24576,
                "num_hidden_layers": 72,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "num_experts": 16,
                "num_experts_per_tok": 2,
                "attn_layer_period": 8,
                "attn_layer_offset": 4,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "mamba_dt_rank": 512,
                "vocab_size": 65536,
            },
            "https://huggingface.co/ai21labs/AI21-Jamba-1.5-Large/blob/main/config.json",
            "398 B, 94 B active",
        ),
    ),
)

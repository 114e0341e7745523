"""MiMo-V2-Flash (arXiv:2601.02780): windows with sinks, DeepSeek-V3's routers."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="MiMo-V2-Flash",
    model_type="mimo_v2_flash",
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    tiny={
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 12,
        "v_head_dim": 8,
        "num_key_value_heads": 2,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 4,
    },
    sizes=(
        Size(
            "MiMo-V2-Flash",
            {
                "hidden_size": 4096,
                "intermediate_size": 16384,
                "moe_intermediate_size": 2048,
                "num_hidden_layers": 48,
                "num_attention_heads": 64,
                "num_key_value_heads": 4,
                "head_dim": 192,
                "v_head_dim": 128,
                "n_routed_experts": 256,
                "num_experts_per_tok": 8,
                "vocab_size": 152576,
            },
            "https://arxiv.org/abs/2601.02780",
            "309 B, 15 B active",
        ),
    ),
)

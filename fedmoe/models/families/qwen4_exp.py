"""Qwen4's language model: residual streams, linear attention, attention with an indexer."""

from __future__ import annotations

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="Qwen4 experimental",
    model_type="qwen4_exp_text",
    attention=(*ATTENTION, "in_proj_qkv", "linear_attn.out_proj"),
    normalised="config",
    shared=True,
    notes="text alone; the indexer that picks the tokens attention sees stays frozen",
    tiny={
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "hc_count": 2,
        "hc_lowrank": 8,
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
)

"""DeepSeek-V2 and V2.5 (arXiv:2405.04434): latent attention, shared experts, a dense start."""

from __future__ import annotations

from fedmoe.models.families.family import LATENT_ATTENTION, Family, Size

FAMILY = Family(
    name="DeepSeek-V2",
    model_type="deepseek_v2",
    attention=LATENT_ATTENTION,
    normalised="never",
    scaled="routed_scaling_factor",
    groups=True,
    shared=True,
    tiny={
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "first_k_dense_replace": 1,
    },
    sizes=(
        Size(
            "DeepSeek-V2.5",
            {
                "hidden_size": 5120,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "num_hidden_layers": 60,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "n_routed_experts": 160,
                "n_shared_experts": 2,
                "num_experts_per_tok": 6,
                "n_group": 8,
                "topk_group": 3,
                "topk_method": "group_limited_greedy",
                "first_k_dense_replace": 1,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "routed_scaling_factor": 16.0,
                "vocab_size": 102400,
            },
            "https://huggingface.co/deepseek-ai/DeepSeek-V2.5/blob/main/config.json",
            "236 B, 21 B active",
        ),
    ),
)

"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, groups, a bias that balances the choice."""

from __future__ import annotations

from fedmoe.models.families.family import LATENT_ATTENTION, Family, Size

FAMILY = Family(
    name="DeepSeek-V3",
    model_type="deepseek_v3",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
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
        "moe_intermediate_size": 16,
        "routed_scaling_factor": 2.0,
        "first_k_dense_replace": 1,
        "num_hidden_layers": 3,
    },
    sizes=(
        Size(
            "DeepSeek-V3",
            {
                "hidden_size": 7168,
                "intermediate_size": 18432,
                "moe_intermediate_size": 2048,
                "num_hidden_layers": 61,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "n_routed_experts": 256,
                "n_shared_experts": 1,
                "num_experts_per_tok": 8,
                "n_group": 8,
                "topk_group": 4,
                "first_k_dense_replace": 3,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "routed_scaling_factor": 2.5,
                "vocab_size": 129280,
            },
            "https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json",
            "671 B, 37 B active",
        ),
    ),
)

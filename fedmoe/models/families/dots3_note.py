"""dots 3's language model: latent attention in windows and with an indexer."""

from __future__ import annotations

from fedmoe.models.families.family import LATENT_ATTENTION, Family

FAMILY = Family(
    name="dots 3",
    model_type="dots3_note_text",
    attention=LATENT_ATTENTION,
    scores="sigmoid",
    normalised="config",
    scaled="routed_scaling_factor",
    corrected=True,
    groups=True,
    shared=True,
    notes="the indexer that picks the tokens attention sees stays frozen",
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
        "routed_scaling_factor": 2.0,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 8,
        "head_dim": 16,
        "shared_experts_intermediate_size": 16,
        "sliding_window": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
)

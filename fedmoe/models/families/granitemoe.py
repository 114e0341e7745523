"""Granite-MoE: a softmax over the chosen logits alone; logits are divided by a constant."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Size

FAMILY = Family(
    name="Granite-MoE",
    model_type="granitemoe",
    block="block_sparse_moe",
    router="router",
    scores="softmax of the chosen",
    scale_logits=lambda config, logits: logits / config.logits_scaling,
    tiny={"num_local_experts": 8, "logits_scaling": 4.0},
    sizes=(
        Size(
            "Granite 3.0 3B-A800M",
            {
                "hidden_size": 1536,
                "intermediate_size": 512,
                "num_hidden_layers": 32,
                "num_attention_heads": 24,
                "num_key_value_heads": 8,
                "num_local_experts": 40,
                "num_experts_per_tok": 8,
                "vocab_size": 49155,
                "tie_word_embeddings": True,
            },
            "https://huggingface.co/ibm-granite/granite-3.0-3b-a800m-base/blob/main/config.json",
            "3.3 B, 800 M active",
        ),
    ),
)

"""Families that cannot be trained here, each with its reason."""

from __future__ import annotations

from fedmoe.models.families.beyond_text import BEYOND_TEXT
from fedmoe.models.families.family import Refused, Size

REFUSED = (
    Refused(
        "DeepSeek-V4",
        "deepseek_v4",
        "its first layers choose experts by a hash of the token's id, with k built in: no budget "
        "below K reaches them",
    ),
    Refused(
        "LongCat-Flash",
        "longcat_flash",
        "some of its experts compute nothing and share a router with those that do, outside "
        "transformers' experts interface",
    ),
    Refused(
        "JetMoE",
        "jetmoe",
        "experts also in attention, computed outside transformers' experts interface",
    ),
    Refused(
        "Gemma 4",
        "gemma4",
        "its router reads its k from the config at every call rather than from itself",
    ),
    Refused(
        "Gemma 4, text alone",
        "gemma4_text",
        "its router reads its k from the config at every call rather than from itself",
    ),
    Refused(
        "Inkling, text alone",
        "inkling_text",
        "its router weighs the shared experts too, so that what the chosen weigh depends on them, "
        "and hands on four values",
    ),
    Refused(
        "ZAYA",
        "zaya",
        "every token has one expert, so that there is no budget below K = 1; its router keeps a "
        "state from layer to layer and may choose to skip",
    ),
    Refused(
        "Doge",
        "doge",
        "its experts are single neurons in embeddings, found by product keys across tokens, "
        "outside transformers' experts interface",
    ),
    Refused(
        "Grok-1",
        "",
        "transformers has no class of it; Mixtral's, with GELU, has its shape but for factors on "
        "embeddings, attention and logits and for norms, so that its checkpoint does not load",
        closest="mixtral",
        sizes=(
            Size(
                "Grok-1",
                {
                    "hidden_size": 6144,
                    "intermediate_size": 32768,
                    "num_hidden_layers": 64,
                    "num_attention_heads": 48,
                    "num_key_value_heads": 8,
                    "num_local_experts": 8,
                    "num_experts_per_tok": 2,
                    "vocab_size": 131072,
                    "hidden_act": "gelu",
                    "tie_word_embeddings": True,
                },
                "https://huggingface.co/hpcai-tech/grok-1/blob/main/config.json",
                "314 B, 25 % active",
            ),
        ),
    ),
    Refused(
        "Snowflake Arctic",
        "arctic",
        "transformers has no class of it; Granite-MoE with a shared layer has its shape but for "
        "where the dense layer joins, so that its checkpoint does not load",
        closest="granitemoeshared",
        sizes=(
            Size(
                "Arctic",
                {
                    "hidden_size": 7168,
                    "intermediate_size": 4864,
                    "num_hidden_layers": 35,
                    "num_attention_heads": 56,
                    "num_key_value_heads": 8,
                    "num_local_experts": 128,
                    "num_experts_per_tok": 2,
                    "shared_intermediate_size": 7168,
                    "vocab_size": 32000,
                },
                "https://huggingface.co/Snowflake/snowflake-arctic-instruct/blob/main/config.json",
                "480 B, 17 B active",
            ),
        ),
    ),
    Refused(
        "GLaM",
        "",
        "never published, and transformers has no class with its ungated experts in every other "
        "layer; qwen3_moe with decoder_sparse_step 2 comes closest (arXiv:2112.06905)",
        closest="qwen3_moe",
    ),
    *BEYOND_TEXT,
)

"""GPT-OSS (arXiv:2508.10925): biases, transposed weights, a clamped gate of its own."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Form, Size

FAMILY = Family(
    name="GPT-OSS",
    model_type="gpt_oss",
    router="router",
    scores="softmax of the chosen",
    form=Form(bias=True, transposed=True, own_gate=True),
    notes="biases stay frozen; a published MXFP4 checkpoint is loaded in full",
    tiny={"num_local_experts": 8, "head_dim": 8},
    sizes=(
        Size(
            "gpt-oss-20b",
            {
                "hidden_size": 2880,
                "intermediate_size": 2880,
                "num_hidden_layers": 24,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "num_local_experts": 32,
                "num_experts_per_tok": 4,
                "vocab_size": 201088,
            },
            "https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json",
            "20.9 B, 3.6 B active without embeddings",
        ),
        Size(
            "gpt-oss-120b",
            {
                "hidden_size": 2880,
                "intermediate_size": 2880,
                "num_hidden_layers": 36,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "vocab_size": 201088,
            },
            "https://huggingface.co/openai/gpt-oss-120b/blob/main/config.json",
            "116.8 B, 5.1 B active without embeddings",
        ),
    ),
)

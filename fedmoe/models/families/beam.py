"""Beam: windows and full attention, a capped output head, an activation in fp32."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Form, Size

FAMILY = Family(
    name="Beam",
    model_type="beam",
    scores="sigmoid",
    normalised="config",
    corrected=True,
    groups=True,
    form=Form(own_gate=True),
    notes="its constant factor is on the output of a sparse layer, not on its weights",
    scale_logits=lambda config, logits: (
        config.final_logit_softcapping * (logits / config.final_logit_softcapping).tanh()
    ),
    tiny={
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "sliding_window": 4,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    sizes=(
        Size(
            "Beam 1.0",
            {
                "hidden_size": 5120,
                "intermediate_size": 20480,
                "moe_intermediate_size": 2560,
                "num_hidden_layers": 52,
                "num_attention_heads": 48,
                "num_key_value_heads": 8,
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "vocab_size": 151936,
            },
            "https://huggingface.co/reflection/Beam-1.0-501B-A23B",
            "501 B, 23 B active",
        ),
    ),
)

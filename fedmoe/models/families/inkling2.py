"""Inkling 2's language model: capped gates and logits, convolutions, layers that attend."""

from __future__ import annotations

from fedmoe.models.families.family import Family, Form

FAMILY = Family(
    name="Inkling 2",
    model_type="inkling2_text",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    form=Form(own_gate=True),
    notes="text alone",
    scale_logits=lambda config, logits: (
        config.final_logit_softcapping * (logits.float() / config.final_logit_softcapping).tanh()
    )[..., : config.unpadded_vocab_size],
    tiny={
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "unpadded_vocab_size": 64,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 8,
        "sliding_window_size": 4,
        "rel_extent": 16,
        "d_rel": 4,
    },
)

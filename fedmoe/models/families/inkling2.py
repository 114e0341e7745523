"""Inkling 2's language model: capped gates and logits, convolutions, layers that attend."""

from fedmoe.models.families.family import Family, Form

FAMILY = Family(
    name="Inkling 2",
    model_type="inkling2_text",
    scores="sigmoid",
    scaled="route_scale",
    corrected=True,
    form=Form(own_gate=True),
    notes="text alone; on transformers 5.24 experts alone (adapter.attention=false)",
    scale_logits=lambda config, logits: (
        config.final_logit_softcapping * (logits.float() / config.final_logit_softcapping).tanh()
    )[..., : config.unpadded_vocab_size],
)

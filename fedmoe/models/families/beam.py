"""Beam: windows and full attention, a capped output head, an activation in fp32."""

from fedmoe.models.families.family import Family, Form

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
)

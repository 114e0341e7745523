"""MiniMax-M3's language model: a clamped gate, sigmoid scores, a shared expert."""

from fedmoe.models.families.family import Family, Form

FAMILY = Family(
    name="MiniMax-M3",
    model_type="minimax_m3_vl_text",
    scores="sigmoid",
    corrected=True,
    shared=True,
    form=Form(own_gate=True),
    notes="text alone; a constant factor is on the output of a sparse layer, not on its weights",
)

"""Aria's language model: experts laid out as (in, out), a wide shared one."""

from fedmoe.models.families.family import Family, Form

FAMILY = Family(
    name="Aria",
    model_type="aria_text",
    router="router",
    scores="softmax of the chosen",
    shared=True,
    form=Form(transposed=True),
    notes="text alone",
)

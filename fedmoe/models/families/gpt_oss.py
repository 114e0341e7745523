"""GPT-OSS (arXiv:2508.10925): biases, transposed weights, its own clamped gate."""

from fedmoe.models.families.family import Family, Form

FAMILY = Family(
    name="GPT-OSS",
    model_type="gpt_oss",
    router="router",
    scores="softmax of the chosen",
    form=Form(bias=True, transposed=True, own_gate=True),
    notes="biases stay frozen; a published MXFP4 checkpoint is loaded in full",
)

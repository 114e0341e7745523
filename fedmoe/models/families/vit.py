"""V-MoE (arXiv:2106.05974): a ViT with a sparse layer in every other place; see `models.vit`."""

from functools import partial

from fedmoe.models.families.family import Family, Form
from fedmoe.models.families.ungated import stack_experts

LINEARS = ("fc1", "fc2")

FAMILY = Family(
    name="V-MoE",
    model_type="vit",
    task="image",
    router="router",
    form=Form(gated=False, bias=True),
    linears=LINEARS,
    install=partial(stack_experts, linears=LINEARS, act="activation_fn"),
    notes="classifies images; transformers' ViT with feed-forward layers upcycled into experts, as "
    "`python -m simulations.vmoe_digits` shows; no capacity: no token is dropped",
)

"""Families of sparse MoE models: where their parts are, how routers weigh, what can be trained.

- `family`: what is stated of a family (`Family`)
- `facts`: the families that facts describe; those that need code have a file each
- `catalogue`: published models and refusals, from `sizes.yaml` and `refused.yaml`
- `layers`: the sparse layers of a loaded model; whether its routers honour `top_k`
- `parameters`: total and active parameters of a config, without its weights

Together with the refusals they name every MoE type of transformers. To add one see `README.md`.
"""

from __future__ import annotations

from torch import nn

from fedmoe.errors import ModelError
from fedmoe.models.families import dbrx, facts, llama4, nllb_moe, phimoe, switch_transformers
from fedmoe.models.families.catalogue import Refused, Size, refused_families
from fedmoe.models.families.family import Family, Form
from fedmoe.models.families.layers import MoELayer, check_top_k, set_top_k, sparse_layers

__all__ = [
    "FAMILIES",
    "Family",
    "Form",
    "MoELayer",
    "Refused",
    "Size",
    "check_family",
    "check_top_k",
    "family_of",
    "install",
    "moe_layers",
    "refused_families",
    "set_top_k",
]

_OF_CODE = (dbrx, llama4, nllb_moe, phimoe, switch_transformers)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (*vars(facts).values(), *(module.FAMILY for module in _OF_CODE))
    if isinstance(family, Family)
}
"""Every family that is trained here, by transformers' name of its model type."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a loaded model; one that is not listed is recognised by its parts."""
    kind = str(model.config.model_type)  # pyright: ignore[reportAttributeAccessIssue]
    return FAMILIES.get(kind) or Family(name=kind, model_type=kind, listed=False)


def check_family(model_type: str) -> None:
    """Refuse a model type that is known not to work.

    Raises:
        ModelError: with the reason.
    """
    for refused in refused_families():
        if model_type and refused.model_type == model_type:
            raise ModelError(
                f"{refused.name} ({model_type}) cannot be trained here: {refused.reason}; "
                "`fedmoe models` lists the families that can"
            )


def install(model: nn.Module) -> Family:
    """Put a model on the expert fast path, make its routers honour `top_k`; return its family."""
    family = family_of(model)
    family.install(model)
    for layer in sparse_layers(model, family):
        family.prepare_router(layer.router)
    return family


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """Return the sparse layers of `model`, first to last; see `sparse_layers` for the errors."""
    return sparse_layers(model, family_of(model))

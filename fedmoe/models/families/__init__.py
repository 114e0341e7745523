"""Families of sparse MoE models: where their parts sit, how their routers weigh, what they need.

- `family`: what a family's file says (`Family`), a published model (`Size`), and `Refused`
- `layers`: the sparse layers of a loaded model; whether its routers honour `top_k`
- `parameters`: total and active parameters of a config, without its weights
- one file per family; `refused` and `beyond_text` list those that cannot be trained, each with its
  reason: together they name every MoE type of the installed transformers

To add a family see `fedmoe/README.md`; in short: a file with a `FAMILY`, and its name below. The
contract suite, `fedmoe models` and the refusals follow from that.
"""

from __future__ import annotations

from torch import nn

from fedmoe.errors import ModelError
from fedmoe.models.families import (
    afmoe,
    aria,
    axk1,
    axk2,
    bailing_hybrid,
    beam,
    cohere2_moe,
    dbrx,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    dots3_note,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    flint,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granitemoe,
    granitemoe_swa,
    granitemoehybrid,
    granitemoeshared,
    hunyuan_v1_moe,
    hy_v3,
    hy_v4,
    inkling2,
    jamba,
    kimi_linear,
    kolibri1,
    laguna,
    lfm2_moe,
    llama4,
    mellum,
    mimo_v2_flash,
    minimax,
    minimax_m2,
    minimax_m3_vl,
    mixtral,
    nemotron_h,
    nllb_moe,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    qwen4_exp,
    solar_open,
    switch_transformers,
    vit,
)
from fedmoe.models.families.family import TINY, Family, Form, Refused, Size
from fedmoe.models.families.layers import MoELayer, check_top_k, set_top_k, sparse_layers
from fedmoe.models.families.refused import REFUSED

__all__ = [
    "FAMILIES",
    "REFUSED",
    "TINY",
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
    "set_top_k",
]

FAMILIES = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        olmoe,
        mixtral,
        qwen2_moe,
        qwen3_moe,
        qwen3_next,
        qwen3_5_moe,
        deepseek_v2,
        deepseek_v3,
        gpt_oss,
        dbrx,
        llama4,
        phimoe,
        jamba,
        granitemoe,
        granitemoeshared,
        granitemoehybrid,
        glm4_moe,
        glm4_moe_lite,
        ernie4_5_moe,
        minimax,
        minimax_m2,
        hunyuan_v1_moe,
        dots1,
        afmoe,
        flex_olmo,
        lfm2_moe,
        exaone_moe,
        solar_open,
        mellum,
        switch_transformers,
        nllb_moe,
        vit,
        deepseek_v32,
        glm_moe_dsa,
        axk1,
        axk2,
        hy_v4,
        dots3_note,
        kimi_linear,
        bailing_hybrid,
        beam,
        cohere2_moe,
        hy_v3,
        flint,
        kolibri1,
        laguna,
        granitemoe_swa,
        mimo_v2_flash,
        minimax_m3_vl,
        aria,
        qwen4_exp,
        inkling2,
        nemotron_h,
    )
}
"""Every family that is trained here, by transformers' name of its model type."""


def family_of(model: nn.Module) -> Family:
    """The family of a loaded model; one that is not listed is recognised by its parts."""
    kind = str(model.config.model_type)  # pyright: ignore[reportAttributeAccessIssue]
    return FAMILIES.get(kind) or Family(name=kind, model_type=kind, listed=False)


def check_family(model_type: str) -> None:
    """Refuse a model type that is known not to work.

    Raises:
        ModelError: with the reason.
    """
    for refused in REFUSED:
        if model_type and refused.model_type == model_type:
            raise ModelError(
                f"{refused.name} ({model_type}) cannot be trained here: {refused.reason}; "
                "`fedmoe models` lists the families that can"
            )


def install(model: nn.Module) -> Family:
    """Put a model on the expert fast path, and let its routers honour `top_k`; its family."""
    family = family_of(model)
    family.install(model)
    for layer in sparse_layers(model, family):
        family.prepare_router(layer.router)
    return family


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """The sparse layers of `model`, first to last; see `sparse_layers` for the errors."""
    return sparse_layers(model, family_of(model))

"""A model without weights: shapes alone, from its configuration, on the meta device."""

from __future__ import annotations

import torch
from torch import nn

from fedmoe.errors import FedMoEError, ModelError
from fedmoe.models.adapted import TOP_K, AdaptedModel, LoRA
from fedmoe.models.build import DTYPES, ModelSettings, model_folder
from fedmoe.models.families import check_family
from fedmoe.models.folder import cannot_load
from fedmoe.models.gating import Rule
from fedmoe.models.rescaling import NoRescaling
from fedmoe.models.tasks import task_of


def meta_model(settings: ModelSettings, adapter: LoRA, gating: Rule = TOP_K) -> AdaptedModel:
    """Return the adapted model of `settings` as shapes; a folder with a `config.json` is enough.

    It has the tensors that a gating trains, and is refused where the gating does not fit.
    """
    return AdaptedModel(meta_base(settings), adapter, NoRescaling(), gating)


def meta_base(settings: ModelSettings) -> nn.Module:
    """Return transformers' own model of `settings` as shapes.

    Raises:
        ModelError: there is no configuration, or not that of a sparse MoE with fused experts.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_folder(settings.path), trust_remote_code=False)
        check_family(config.model_type)
        with torch.device("meta"):
            return task_of(config.model_type).build(config, DTYPES[settings.dtype])
    except FedMoEError:
        raise
    except Exception as error:  # as in `load_base`
        raise ModelError(cannot_load(settings.path, "configuration of a model", error)) from error

"""Frozen experts of families that keep them in another way: forms, bytes, gatings that train."""

import json

import pytest
import torch
from family_contract import IDS, SETTINGS, logits_of
from family_models import tiny_config, tiny_family

from fedmoe.budget.shape import shape_of
from fedmoe.errors import ModelError
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES
from fedmoe.models.gating import NoisyTopKGating
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.meta import meta_model
from fedmoe.models.rescaling import NoRescaling


@pytest.mark.parametrize("form", ["full", "int8", "int4"])
@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "aria_text", "dbrx", "nemotron_h"])
@torch.no_grad()
def test_bytes_of_a_form_are_as_planned_where_experts_are_kept_another_way(kind, form):
    changes = {} if kind == "dbrx" else {"hidden_size": 48}
    model = AdaptedModel(tiny_family(FAMILIES[kind], **changes), SETTINGS, NoRescaling())
    before, shape = logits_of(model), shape_of(model)
    assert shape.rows == tuple(weights.shape[-1] for weights in weights_of(model.layers[0]))
    model.frozen.hold({form: False})
    assert shape.experts_bytes(form) == model.frozen.num_bytes(form)
    assert logits_of(model, IDS).shape == before.shape


def test_a_model_of_shapes_alone_has_what_a_gating_trains(tmp_path):
    config = tiny_config(FAMILIES["mixtral"]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = ModelSettings(path=str(tmp_path))
    plain = meta_model(settings, SETTINGS)
    noisy = meta_model(settings, SETTINGS, NoisyTopKGating())
    assert noisy.layout.size == plain.layout.size + 2 * 8 * 32  # a second router in both layers


def test_a_model_of_shapes_alone_refuses_a_gating_that_has_no_meaning(tmp_path):
    config = tiny_config(FAMILIES["deepseek_v3"]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"gating\.name 'noisy_top_k' needs routers that take"):
        meta_model(ModelSettings(path=str(tmp_path)), SETTINGS, NoisyTopKGating())

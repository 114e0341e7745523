"""Families' files agree with their models, and families that cannot be trained are refused."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from family_contract import SETTINGS, adapted, every_family, original, random_rows
from family_models import TINY, tiny_family
from pydantic import TypeAdapter
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

from fedmoe.errors import ModelError
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES, check_family, install, moe_layers, refused_families
from fedmoe.models.families.catalogue import PACKAGE, Refused, Size, sizes_of
from fedmoe.models.families.parameters import parameters_of
from fedmoe.models.gating import Gates, Top1Gating
from fedmoe.models.memory.subset import drop_fault
from fedmoe.models.modulation import SOFTMAX, modulate
from fedmoe.models.rescaling import NoRescaling
from fedmoe.system.package_data import package_yaml


@every_family
def test_the_familys_file_says_how_its_router_weighs(kind):
    """Names, shared experts, corrections and groups by what is there, weights by their sums."""
    family = replace(FAMILIES[kind])
    model = adapted(kind)
    model.set_budget(model.full_top_k)
    for layer in model.layers:
        path, _, router = layer.router_path.rpartition(".")
        assert (path.rpartition(".")[2], router) == (family.block, family.router)
    around = [name for name, _ in original(kind).named_modules() if "shared" in name]
    assert bool(around) == family.shared
    names = [n for n, _ in [*original(kind).named_buffers(), *original(kind).named_parameters()]]
    corrections = [n for n in names if "correction_bias" in n or n.endswith("expert_bias")]
    assert bool(corrections) == family.corrected
    assert family.groups == (int(getattr(original(kind).config, "n_group", 1) or 1) > 1)
    outputs = []
    hook = model.layers[0].router.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model.layers[0].block(random_rows(1, 40, 32))
    hook.remove()
    sums = outputs[0][1].float().sum(-1)
    normalised = family.normalised == "always" or "chosen" in family.scores
    if family.normalised == "config":
        normalised = bool(model.layers[0].router.norm_topk_prob)
    factor = float(getattr(original(kind).config, family.scaled)) if family.scaled else 1.0
    assert torch.allclose(sums, torch.full_like(sums, factor), atol=1e-4) == normalised


@every_family
def test_parameters_per_k_are_those_of_its_tensors(kind):
    """One by one: all, without those of experts that k leaves out."""
    base, counted = original(kind), parameters_of(adapted_base(kind), FAMILIES[kind])
    assert counted.total == sum(p.numel() for p in base.parameters())
    of_experts = sum(p.numel() for n, p in base.named_parameters() if ".experts." in n)
    for k in range(1, counted.top_k + 1):
        assert counted.active(k) == counted.total - of_experts * (8 - k) // 8


@cache
def adapted_base(kind):
    base = tiny_family(FAMILIES[kind])
    FAMILIES[kind].install(base)
    return base


@pytest.mark.parametrize("kind", SOFTMAX)
def test_an_unmodulated_softmax_router_stays_as_it_is_to_the_bit(kind):
    base = tiny_family(FAMILIES[kind])
    install(base)
    layer, x = moe_layers(base)[0], random_rows(20, 32)
    before = layer.router(x)
    modulate(layer.router, kind, layer.top_k).phi = torch.zeros(8)
    logits, weights, index = layer.router(x)
    assert torch.equal(logits, before[0])
    assert torch.equal(index, before[2])
    if FAMILIES[kind].scores == "softmax":
        assert torch.equal(weights, before[1])
    torch.testing.assert_close(weights, before[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dbrx", {"norm": 2.0}),
        ("dbrx", {"norm": None}),
        ("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    ],
)
def test_a_config_that_asks_for_another_rule_than_its_familys_is_refused(kind, changes):
    base = tiny_family(FAMILIES[kind])
    install(base)
    layers = moe_layers(base)
    assert drop_fault(FAMILIES[kind], layers) is None
    for name, value in changes.items():
        setattr(layers[1].router, name, value)
    with pytest.raises(ModelError, match="config asks for another rule"):
        Gates(layers, Top1Gating(), kind, 4)
    with pytest.raises(ModelError, match="config asks for another rule"):
        modulate(layers[1].router, kind, 4)
    assert "use left_out: merge" in (drop_fault(FAMILIES[kind], layers) or "")


@pytest.mark.parametrize("refused", refused_families(), ids=lambda refused: refused.name)
def test_what_cannot_be_trained_says_why(refused):
    assert len(refused.reason) > 40
    assert not refused.closest or refused.closest in FAMILIES
    assert refused.model_type not in FAMILIES
    if refused.model_type:
        with pytest.raises(ModelError, match=f"{refused.name}.*cannot be trained here"):
            check_family(refused.model_type)


def test_facts_in_data_files_are_whole_and_of_families_that_are_known():
    sizes, refused = (package_yaml(PACKAGE, f"{name}.yaml") for name in ("sizes", "refused"))
    TypeAdapter(dict[str, list[Size]]).validate_json(json.dumps(sizes), strict=True)
    TypeAdapter(list[Refused]).validate_json(json.dumps(refused), strict=True)
    names = [family.model_type or family.name.lower() for family in refused_families()]
    assert len(names) == len(set(names))
    assert set(sizes) <= {*FAMILIES, *names}
    for size in (size for kind in sizes for size in sizes_of(kind)):
        assert size.source.startswith("https://")
        assert size.stated
    assert set(TINY) == {"shared", *FAMILIES}


SPARSE = re.compile(
    r"use_experts_implementation|^class \w+(Experts|MoE|Moe|MoeBlock|SparseMLP)\(nn\.Module", re.M
)


def sparse_types():
    """transformers' sparse model types that write text, by their sources."""
    root = Path(transformers.__file__).parent / "models"
    writing = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    for kind in sorted(writing):
        folder = root / model_type_to_module_name(kind)
        if any(SPARSE.search(path.read_text()) for path in folder.glob("modeling_*.py")):
            yield kind


def test_every_sparse_type_of_transformers_is_trained_or_refused():
    """Some hold a language model alone, which AutoModelForCausalLM takes out of them."""
    known = {*FAMILIES, *(refused.model_type for refused in refused_families())}
    types = list(sparse_types())
    assert len(types) > 60
    inside = {kind for kind in types if f"{kind}_text" in FAMILIES}
    assert [kind for kind in types if kind not in known | inside] == []


def test_a_refused_family_is_refused_before_it_is_loaded(tmp_path):
    from transformers import AutoConfig

    from fedmoe.models.build import build_model
    from fedmoe.models.memory.meta import meta_model

    AutoConfig.for_model("jetmoe").save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    for refuse in (
        lambda: build_model(settings, SETTINGS, NoRescaling()),
        lambda: meta_model(settings, SETTINGS),
    ):
        with pytest.raises(ModelError, match="experts also in attention"):
            refuse()


def test_attention_of_another_name_is_refused_rather_than_left_out():
    base = tiny_family(FAMILIES["mixtral"])
    for layer in base.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, f"{name}_", layer.self_attn._modules.pop(name))
    with pytest.raises(ModelError, match="no attention projection is called q_proj"):
        AdaptedModel(base, SETTINGS, NoRescaling())


def test_layers_with_unlike_budgets_are_refused():
    base = tiny_family(FAMILIES["mixtral"])
    base.model.layers[1].mlp.gate.top_k = 2
    with pytest.raises(ModelError, match=r"unlike \(experts, top_k\) \[\(8, 2\), \(8, 4\)\]"):
        moe_layers(base)


def test_an_unlisted_family_that_scales_its_logits_is_refused():
    model = AdaptedModel(tiny_family(FAMILIES["granitemoe"]), SETTINGS, NoRescaling())
    model.family = replace(model.family, listed=False)
    model.check_top_ks({4})
    model.family = replace(model.family, scale_logits=None)
    with pytest.raises(ModelError, match="change their logits behind the output head"):
        model.check_top_ks({4})

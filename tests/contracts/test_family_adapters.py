"""The contract of families' adapters: gradients, and a way to PEFT and back."""

from dataclasses import replace

import pytest
import torch
from exports import export
from family_contract import (
    FIRST,
    IDS,
    KINDS,
    error,
    every_family,
    logits_of,
    settings_of,
    slow_but,
    trained,
)
from family_models import save, tiny_family
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from fedmoe.adapter import Adapter
from fedmoe.errors import ModelError
from fedmoe.export.peft import to_peft
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES
from fedmoe.models.peft_layers import target_of
from fedmoe.models.rescaling import NoRescaling

# PEFT 0.21.2 reads a property that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EXPORTED_BY_DEFAULT = ["gpt_oss", "llama4_text"]
"""Transposed, with and without PEFT's knowledge; others are exported with `slow`."""
EXPORTED = [kind for kind in KINDS if not FAMILIES[kind].no_peft]


def factor_gradients(kind, wrapped):
    """PEFT's gradients of every factor by our names, in our shapes."""
    for path, layer in wrapped.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and layer.lora_A:
            a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
            if getattr(layer, "parameter_name", None):
                e = layer.num_experts
                a, b = a.view(e, -1, a.shape[-1]), b.view(b.shape[0], -1, e).permute(2, 0, 1)
                if kind == "llama4_text":  # PEFT takes its weights for (experts, out, in)
                    a, b = b.mT, a.mT
            yield from zip((f"{target_of(path, layer)}.{x}" for x in "AB"), (a, b), strict=True)


@pytest.mark.parametrize("kind", slow_but(FIRST, EXPORTED))
def test_logits_and_every_gradient_match_pefts_and_no_other_weight_has_one(kind, random_adapter):
    """Relative errors below 1e-5; then merged by PEFT, within 1e-5 too."""
    model = trained(kind, random_adapter)
    wrapped = to_peft(model.read(), tiny_family(FAMILIES[kind]))
    ours, theirs = logits_of(model), wrapped(input_ids=IDS).logits
    assert error(ours, theirs) < 1e-5
    model.grad.zero_()
    for logits in (ours, theirs):
        logits.log_softmax(-1)[..., 7].sum().backward()
    grads = {entry.name: view for entry, view in model.layout.views(model.grad.clone())}
    for name, theirs_ in factor_gradients(kind, wrapped):
        # What sums from many unlike terms to nearly nothing is held to the scale of all gradients.
        mine = grads.pop(name)
        assert (mine - theirs_).norm() <= 1e-5 * theirs_.norm() + 1e-7 * model.grad.norm(), name
    assert not grads
    leaves = {entry.name for entry in model.layout.entries}
    reached = [n for n, p in model.model.named_parameters() if p.grad is not None]
    assert all(name in leaves for name in reached), reached
    with torch.no_grad():
        merged = wrapped.merge_and_unload()(input_ids=IDS).logits
    assert error(ours.detach(), merged) < 1e-5


@pytest.mark.parametrize("kind", slow_but(FIRST, EXPORTED))
@torch.no_grad()
def test_trained_routers_go_to_peft_and_merge(kind, random_adapter):
    """Relative errors below 1e-5, and far from what it is without them."""
    settings, family = replace(settings_of(kind), router=True), FAMILIES[kind]
    model = AdaptedModel(tiny_family(family), settings, NoRescaling())
    adapter = random_adapter(model.layout)
    model.load(adapter)
    ours, wrapped = logits_of(model), to_peft(adapter, tiny_family(family))
    assert error(ours, wrapped(input_ids=IDS).logits) < 1e-5
    assert error(ours, wrapped.merge_and_unload()(input_ids=IDS).logits) < 1e-5
    for entry, view in model.layout.views(model.flat):
        if entry.kind == "shift":
            view.zero_()
    assert error(ours, logits_of(model)) > 1e-3


@every_family
def test_every_factor_is_reached_and_an_expert_without_tokens_is_not(kind, random_adapter):
    model = trained(kind, random_adapter)
    model.set_budget(1)
    model.grad.zero_()
    few = IDS[:1, :4]
    with model.counting() as counts:
        logits_of(model, few).log_softmax(-1)[..., 7].sum().backward()
    assert (counts == 0).any()
    for entry, grad in model.layout.views(model.grad):
        assert grad.ne(0).any(), entry.name
        if entry.layer is not None:
            touched = grad.flatten(1).ne(0).any(1)
            assert torch.equal(touched, counts[entry.layer] > 0), entry.name


@pytest.mark.parametrize("kind", slow_but(EXPORTED_BY_DEFAULT, EXPORTED))
def test_an_export_is_loaded_and_merged_by_peft(kind, random_adapter, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_family(FAMILIES[kind], vocab_size=4096)
    settings = ModelSettings(path=str(save(base, tmp_path / "base")))
    model = AdaptedModel(base, settings_of(kind), NoRescaling())
    adapter = random_adapter(model.layout)
    assert export(adapter, model, settings, tmp_path / "adapter") < 1e-4
    reloaded = AutoModelForCausalLM.from_pretrained(settings.path)
    without = reloaded(input_ids=IDS).logits
    merged = PeftModel.from_pretrained(reloaded, str(tmp_path / "adapter")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=IDS).logits
    model.set_budget(model.full_top_k)
    assert error(logits_of(model), theirs) < 1e-5
    assert error(without, theirs) > 1e-2  # else nothing was merged and nothing is shown


def test_dbrx_is_the_original_with_its_adapter_merged_and_refuses_an_export(
    random_adapter, tmp_path
):
    model, base = trained("dbrx", random_adapter), tiny_family(FAMILIES["dbrx"])
    views = model.read().views()

    def delta(name):
        return model.layout.scale * views[f"{name}.B"] @ views[f"{name}.A"]

    for i, block in enumerate(base.transformer.blocks):
        path, mlp = f"transformer.blocks.{i}", block.ffn.experts.mlp
        gate, up = delta(f"{path}.ffn.experts.gate_up_proj").chunk(2, dim=1)
        mlp.w1 += gate.flatten(0, 1)
        mlp.v1 += up.flatten(0, 1)
        mlp.w2 += delta(f"{path}.ffn.experts.down_proj").mT.flatten(0, 1)
        for name in ("Wqkv", "out_proj"):
            linear = getattr(block.norm_attn_norm.attn, name)
            linear.weight += delta(f"{path}.norm_attn_norm.attn.{name}")
    assert error(logits_of(model), base(input_ids=IDS).logits) < 1e-5
    with pytest.raises(ModelError, match="DBRX keeps all experts in one two-dimensional matrix"):
        export(model.read(), model, ModelSettings(), tmp_path / "out")


def test_trained_routers_of_every_kind_get_a_shift():
    """A router's weights may be those of a linear layer inside it."""
    for kind in ("mixtral", "hunyuan_v1_moe", "phimoe"):
        settings = replace(settings_of(kind), router=True)
        model = AdaptedModel(tiny_family(FAMILIES[kind]), settings, NoRescaling())
        plain = logits_of(model).detach()
        flat = torch.zeros(model.layout.size)
        changed = Adapter(model.layout, flat)
        for entry, view in model.layout.views(flat):
            if entry.kind == "shift":
                view.normal_(generator=torch.Generator().manual_seed(1))
        model.load(changed)
        assert error(logits_of(model).detach(), plain) > 1e-3, kind

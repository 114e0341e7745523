"""AdaptedModel against PEFT's own wrapper: values, gradients of every factor, and the export."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exports import export, largest_difference
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper

from fedmoe.adapter import initial_adapter
from fedmoe.budget.levels import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.data.home_assistant.dataset import HomeAssistant
from fedmoe.errors import FedMoEError, ModelError
from fedmoe.export import peft as peft_export
from fedmoe.export.peft import to_peft
from fedmoe.export.reload import logits_of
from fedmoe.export.saved import SavedRun
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings, build_model, load_base
from fedmoe.models.gating import NoisyTopKGating
from fedmoe.models.rescaling import LearnedRescaling, NoRescaling

# PEFT 0.21.2 reads a property that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SETTINGS = LoRA(rank=4, alpha=8.0)
ROWS = HomeAssistant(per_domain=20)
IDS = torch.randint(2, 64, (3, 11), generator=torch.Generator().manual_seed(0))
FAMILIES = ["olmoe", "mixtral", "qwen3_moe"]


def our_logits(model, ids=IDS):
    return model.logits(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))


def lora_layers(wrapped) -> Iterator[tuple[str, Any]]:
    """PEFT's layers by the name that we give to the weight they adapt."""
    for path, layer in wrapped.base_model.model.named_modules():
        if isinstance(layer, ParamWrapper):
            yield f"{path.split('.experts')[0]}.experts.{layer.parameter_name}", layer
        elif isinstance(layer, LoraLayer):
            yield path, layer


def slow_factors(a, b, num_experts, shape_a, shape_b):
    """PEFT's A (experts * rank, in) and B (out, rank * experts), one number at a time."""
    rank, into, out = shape_a[1], shape_a[2], shape_b[1]
    ours_a, ours_b = torch.zeros(shape_a), torch.zeros(shape_b)
    for e in range(num_experts):
        for r in range(rank):
            ours_a[e, r, :into] = a[e * rank + r]
            ours_b[e, :out, r] = b[:, r * num_experts + e]
    return ours_a, ours_b


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_k", [4, 1])
def test_logits_and_every_factors_gradient_match(
    tiny_base, tiny_model, random_adapter, family, top_k
):
    """Relative errors below 1e-5 in float32."""
    model = tiny_model(family, SETTINGS)
    adapter = random_adapter(model.layout)
    model.load(adapter)
    model.set_budget(top_k)
    base = tiny_base(family)
    for layer in base.model.layers:
        layer.mlp.gate.top_k = top_k
    wrapped = to_peft(adapter, base)

    ours, theirs = our_logits(model), wrapped(input_ids=IDS).logits
    assert relative_error(ours, theirs) < 1e-5
    for logits in (ours, theirs):
        logits.log_softmax(-1)[..., 7].sum().backward()
    grads = {entry.name: view for entry, view in model.layout.views(model.grad)}
    for name, layer in lora_layers(wrapped):
        a, b = (grads.pop(f"{name}.{factor}") for factor in "AB")
        their_a, their_b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        if a.dim() == 3:
            their_a, their_b = slow_factors(their_a, their_b, 8, a.shape, b.shape)
        assert relative_error(a, their_a) < 1e-5, name
        assert relative_error(b, their_b) < 1e-5, name
    assert not grads


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_itself_builds_the_delta_of_each_expert_from_our_factors(
    tiny_base, tiny_model, random_adapter, family
):
    adapter = random_adapter(tiny_model(family, SETTINGS).layout)
    wrapped = to_peft(adapter, tiny_base(family))
    seen = 0
    for name, layer in lora_layers(wrapped):
        if isinstance(layer, ParamWrapper):
            delta = layer.get_delta_weight("default")
            for e in range(8):
                expected = 2.0 * adapter[f"{name}.B"][e] @ adapter[f"{name}.A"][e]
                torch.testing.assert_close(delta[e], expected)
            seen += 1
    assert seen == 4


def test_a_fresh_adapter_changes_nothing_and_is_bounded_as_pefts(tiny_base, tiny_model):
    model = tiny_model("olmoe", SETTINGS)
    adapter = initial_adapter(model.layout, torch.Generator().manual_seed(0))
    for name, layer in lora_layers(to_peft(adapter, tiny_base())):
        assert layer.lora_B["default"].weight.eq(0).all(), name
        a = layer.lora_A["default"].weight
        bound = a.shape[-1] ** -0.5
        assert 0.8 * bound < a.abs().max() <= bound, name
    model.load(adapter)
    theirs = tiny_base()(input_ids=IDS).logits
    assert relative_error(our_logits(model), theirs) < 1e-5


@pytest.fixture(params=[True, False], ids=["attention", "experts-only"])
def saved(request, tiny_folder, random_adapter):
    settings = ModelSettings(path=str(tiny_folder))
    adapter_settings = LoRA(rank=4, alpha=8.0, attention=request.param)
    model, _ = build_model(settings, adapter_settings, NoRescaling())
    return settings, model, random_adapter(model.layout)


def test_an_exported_folder_is_loaded_by_peft_with_the_same_logits(saved, tmp_path):
    from transformers import AutoModelForCausalLM

    settings, model, adapter = saved
    difference = export(adapter, model, settings, tmp_path / "out")
    assert difference < 1e-4
    base = AutoModelForCausalLM.from_pretrained(settings.path, experts_implementation="eager")
    without = base(input_ids=IDS).logits
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "out"))(input_ids=IDS).logits
    model.load(adapter)
    model.set_budget(model.full_top_k)
    assert (our_logits(model) - theirs).abs().max() < 1e-4
    assert (theirs - without).abs().max() > 0.1  # else the adapter was dropped and nothing is shown


def expert_major(b):
    """The obvious layout of B, in which PEFT would read other experts' columns."""
    return b if b.dim() == 2 else b.permute(1, 0, 2).reshape(b.shape[1], -1)


def test_an_expert_major_b_is_caught_before_anything_is_left(saved, tmp_path, monkeypatch):
    settings, model, adapter = saved
    monkeypatch.setattr(peft_export, "_peft_b", expert_major)
    with pytest.raises(ModelError, match="logits that PEFT computes differ from ours"):
        export(adapter, model, settings, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_proof_sees_one_wrong_expert(saved, tmp_path):
    """Two experts' B swapped in one layer of a saved folder."""
    settings, model, adapter = saved
    swapped = adapter + (adapter - adapter)
    b = swapped["model.layers.1.mlp.experts.down_proj.B"]
    b[[0, 1]] = b[[1, 0]]
    to_peft(swapped, load_base(settings)[0]).save_pretrained(tmp_path / "wrong")
    assert largest_difference(adapter, model, settings, tmp_path / "wrong") > 1e-3


def test_modulated_routers_are_refused(tiny_model, random_adapter, tmp_path):
    model = tiny_model("olmoe")
    layout = model.layout.plus([("model.layers.0.mlp.experts.phi", (8,), None)])
    with pytest.raises(ModelError, match="PEFT has no form for modulated routers"):
        export(random_adapter(layout), model, ModelSettings(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_trained_router_is_saved_whole_and_a_missing_one_is_seen(
    tiny_folder, random_adapter, tmp_path
):
    settings = ModelSettings(path=str(tiny_folder))
    trained = LoRA(rank=4, alpha=8.0, router=True)
    model, _ = build_model(settings, trained, NoRescaling())
    adapter = random_adapter(model.layout)
    assert export(adapter, model, settings, tmp_path / "out") < 1e-4
    about = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    assert about["modules_to_save"] == [layer.router_path for layer in model.layers]
    adapter[f"{model.layers[0].router_path}.shift"][3] += 1.0  # of one expert, after the export
    assert largest_difference(adapter, model, settings, tmp_path / "out") > 1e-3


def test_noise_that_there_is_in_training_alone_is_left_out(saved, tmp_path, random_adapter):
    settings, _, _ = saved
    model, _ = build_model(settings, SETTINGS, NoRescaling(), NoisyTopKGating())
    adapter = random_adapter(model.layout)
    assert any(entry.name.endswith("noise.shift") for entry in adapter.layout.entries)
    assert export(adapter, model, settings, tmp_path / "out") < 1e-4


def test_learned_factors_at_full_k_are_not_left_out_unsaid(tiny_folder, random_adapter, tmp_path):
    settings = ModelSettings(path=str(tiny_folder))
    e = Experiment(
        model=settings,
        adapter=SETTINGS,
        data=ROWS,
        rescaling=LearnedRescaling(),
        budget=Levels(tiers={"low": Tier(top_k=1), "full": Tier(top_k=4), "high": Tier(top_k=4)}),
    )
    model, tokenizer = build_model(settings, SETTINGS, e.rescaling)
    state = random_adapter(model.layout)
    factors = {"low": torch.tensor([1.3, 0.8]), "full": torch.ones(2), "high": torch.ones(2)}
    assert (
        SavedRun(e, model, tokenizer, state, factors, 1)
        .export(tmp_path / "even", prove=logits_of)
        .largest_difference
        < 1e-4
    )
    factors["high"] = torch.tensor([1.25, 0.875])
    run = SavedRun(e, model, tokenizer, state, factors, 1)
    with pytest.raises(FedMoEError, match=r"0\.875 to 1\.25 at k = 4, .* and --without-rescaling"):
        run.export(tmp_path / "out", prove=logits_of)
    assert not (tmp_path / "out").exists()
    assert (
        run.export(tmp_path / "out", without_rescaling=True, prove=logits_of).largest_difference
        < 1e-4
    )


def test_a_run_in_bfloat16_is_exported_from_exact_weights(tiny_folder, random_adapter, tmp_path):
    """Its own weights are rounded, so its logits are not those that PEFT computes."""
    settings = ModelSettings(path=str(tiny_folder), dtype="bfloat16")
    experiment = Experiment(model=settings, adapter=SETTINGS, data=ROWS)
    model, tokenizer = build_model(settings, SETTINGS, experiment.rescaling)
    saved_run = SavedRun(experiment, model, tokenizer, random_adapter(model.layout), {}, 1)
    done = saved_run.export(tmp_path / "out", prove=logits_of)
    assert done.largest_difference < 1e-4
    wording = {"template": "plain", "begin": "", "prompt": "Q: {prompt}\nA:"}
    wording |= {"response": " {response}<eos>"}
    assert done.facts["prompts"]["wording"] == wording

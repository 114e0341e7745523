"""The memory model against autograd itself: the bytes that a forward pass really keeps."""

import json
from pathlib import Path

import pytest
import torch
from autograd_bytes import kept_bytes
from shapes import OLMOE

from fedmoe.budget.auto import analytic
from fedmoe.budget.cost import cost
from fedmoe.budget.measure import Sample, measure
from fedmoe.budget.model import Constants, memory, saved_bytes, step_flops, step_seconds
from fedmoe.budget.probe import Machine
from fedmoe.budget.shape import Setting, frozen_bytes, shape_of
from fedmoe.config.load import load
from fedmoe.config.schema import Experiment
from fedmoe.devices import Device
from fedmoe.errors import ModelError
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.memory.meta import meta_model


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize(
    ("family", "attention"), [("olmoe", True), ("olmoe", False), ("mixtral", True)]
)
def test_what_backward_needs_is_what_autograd_keeps(
    tiny_model, family, attention, top_k, recompute
):
    model = tiny_model(family, LoRA(rank=4, attention=attention))
    model.set_budget(top_k)
    model.set_recompute(recompute)
    setting = Setting(top_k, 8, 64, 4, recompute)
    shape = shape_of(model)
    logits = 4 * 8 * 4 * shape.vocabulary
    # Tokens and slots of routed rows, two int64, which the experts keep past autograd.
    indices = 16 * top_k * setting.tokens * shape.num_layers
    kept = kept_bytes(model, setting, shape.vocabulary) + indices
    assert saved_bytes(shape, setting) + logits == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_of_several_clients_keeps_what_it_is_predicted_to(tiny_model, recompute):
    model = tiny_model("olmoe", LoRA(rank=4))
    model.set_recompute(recompute)
    shape = shape_of(model)
    one, three = (Setting(2, 4, 64, 4, recompute, clients=n) for n in (1, 3))
    logits = 4 * three.all_targets * shape.vocabulary
    indices = 16 * 2 * three.tokens * shape.num_layers
    kept = kept_bytes(model, three, shape.vocabulary) + indices
    assert saved_bytes(shape, three) + logits == pytest.approx(kept, rel=0.05)
    alone, found = (memory(shape, setting, Constants()) for setting in (one, three))
    assert found.weights == alone.weights
    assert found.optimiser == 3 * 6 / 4 * alone.optimiser
    assert step_flops(shape, three) == 3 * step_flops(shape, one)


def test_a_model_on_the_meta_device_has_the_shape_of_the_real_one(tiny_folder, tiny_model):
    adapter = LoRA(rank=4, alpha=8.0)
    meta = meta_model(ModelSettings(path=str(tiny_folder)), adapter)
    assert meta.device.type == "meta"
    assert shape_of(meta) == shape_of(tiny_model(adapter=adapter, vocab_size=4096))


def test_olmoe_needs_what_it_was_measured_to_need_on_a_gpu(tmp_path, monkeypatch):
    """Bytes allocated on an H100, torch 2.11: 4 x 512 tokens, rank 20, experts alone adapted."""
    monkeypatch.setattr("fedmoe.budget.model.LOGIT_VALUES", 2**40)  # they were whole then
    (tmp_path / "config.json").write_text(json.dumps(OLMOE))
    settings = ModelSettings(path=str(tmp_path), dtype="bfloat16")
    model = meta_model(settings, LoRA(rank=20, attention=False))
    shape = shape_of(model, on_gpu=True)
    assert shape.weight_bytes == 13_838_323_712
    assert shape.adapter == 146_800_640
    for setting, peak in (
        (Setting(1, 4, 512, 512), 19.610e9),
        (Setting(4, 4, 512, 512), 20.026e9),
        (Setting(8, 4, 512, 512), 20.578e9),
        (Setting(8, 4, 512, 512, True), 19.483e9),
        (Setting(8, 1, 512, 512), 17.569e9),
        (Setting(8, 8, 512, 128), 23.030e9),
    ):
        found = memory(shape, setting, Constants())
        assert found.total == pytest.approx(peak, rel=0.02)
        assert found.above_weights == pytest.approx(peak - shape.weight_bytes, rel=0.05)


def test_olmoe_takes_as_long_as_it_was_measured_to_take_on_a_gpu(tmp_path):
    """Seconds of a micro-batch on an H100, torch 2.11, rank 20; the median of 5."""
    (tmp_path / "config.json").write_text(json.dumps(OLMOE))
    settings = ModelSettings(path=str(tmp_path), dtype="bfloat16")
    shape = shape_of(meta_model(settings, LoRA(rank=20, attention=False)), on_gpu=True)
    device = load(Device, Path(__file__).parents[2] / "configs/devices/h100_sxm.yaml")
    constants = analytic(Machine.of_device(device), shape.num_layers)
    for setting, seconds in (
        (Setting(1, 4, 512, 256), 0.112),
        (Setting(8, 4, 512, 256), 0.132),
        (Setting(1, 8, 2048, 1024), 0.286),
        (Setting(8, 8, 2048, 1024), 0.535),
        (Setting(1, 4, 1020, 1020, frozen="int8"), 0.188),
        (Setting(8, 4, 1020, 1020, frozen="int4"), 0.272),
    ):
        assert step_seconds(shape, setting, constants) == pytest.approx(seconds, rel=0.2)


def test_without_a_configuration_it_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match="holds no configuration of a model"):
        meta_model(ModelSettings(path=str(tmp_path)), LoRA())


def test_flops_agree_with_those_of_the_ledger(tiny_model):
    """With attention's scores apart, and every token a response token."""
    model = tiny_model()
    e = Experiment()
    price = cost(model, e.aggregation.layouts(model.layout, 1), 2, 1, e.upload)
    shape = shape_of(model)
    scores = 7 * shape.num_layers * shape.query * 6 * 3
    setting = Setting(2, 2, 3, 3)
    assert step_flops(shape, setting) - scores == pytest.approx(6 * price.train_flops_per_token)


def test_frozen_bytes_are_the_base_models_alone(tiny_base, tiny_model):
    base = sum(p.numel() * p.element_size() for p in tiny_base().parameters())
    assert frozen_bytes(tiny_model()) == base


def test_a_measured_step_shows_what_it_touched():
    def step(setting):
        def go():
            torch.ones(setting.length, 2**18).sum()

        return go

    cpu = torch.device("cpu")
    small, large = (measure(step, Setting(1, 1, n, 1), 1, cpu, 0) for n in (16, 96))
    assert isinstance(large, Sample)
    assert large.seconds > 0
    # 80 MiB more; what else the process touched meanwhile differs by machine, by some MiB.
    assert large.peak_bytes - small.peak_bytes == pytest.approx(80 * 2**20, rel=0.5)


def test_a_step_that_fails_says_why():
    def step(setting):
        raise ValueError("no such step")

    with pytest.raises(ModelError, match="no such step"):
        measure(step, Setting(1, 1, 8, 1), 1, torch.device("cpu"), 0)

"""Laws of memory levers in a run: each tier has its own form of the experts; full is as ever."""

from pathlib import Path

import pytest
import torch

from fedmoe.budget import Auto, Tier
from fedmoe.budget.cost import cost
from fedmoe.budget.measure import restoring_seconds
from fedmoe.budget.model import Constants, memory
from fedmoe.budget.plan import Option, Plan
from fedmoe.budget.shape import shape_of
from fedmoe.budget.work import Work
from fedmoe.config import load_experiment
from fedmoe.config.schema import Experiment
from fedmoe.errors import ConfigError
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Task
from fedmoe.models.memory import frozen
from fedmoe.models.memory.frozen import forms_of
from fedmoe.models.memory.stored import Elsewhere, Frozen
from fedmoe.runs.prepare import prepare

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
IDS = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
VALID = torch.ones_like(IDS, dtype=torch.bool)
SMALL = [
    "data.per_domain=20",
    "evaluation.validation_examples=2",
    "evaluation.test_examples=4",
    "training.steps=1",
    "training.batch_size=2",
    "training.probe_examples=2",
    "evaluation.max_new_tokens=2",
]


def logits_of(model):
    return model.logits(model.hidden(IDS, VALID)).detach()


@pytest.fixture
def model(tiny_model, random_adapter):
    made = tiny_model()
    made.load(random_adapter(made.layout))
    return made


def test_forms_change_what_is_computed_and_full_comes_back_to_the_bit(model):
    before = logits_of(model)
    model.frozen.hold({"full": False, "int8": False, "int4": False})
    found = {}
    for form in ("full", "int8", "int4", "int8", "full"):
        model.frozen.use(form)
        again = logits_of(model)
        assert torch.equal(found.setdefault(form, again), again)
    assert torch.equal(found["full"], before)
    errors = [(found[form] - before).norm() / before.norm() for form in ("int8", "int4")]
    assert 0 < errors[0] < errors[1] < 0.5


def test_one_form_alone_leaves_no_full_weights_and_its_bytes_are_as_planned(tiny_model):
    for form in ("full", "int8", "int4"):
        model = tiny_model()
        model.frozen.hold({form: False})
        shape = shape_of(model)
        assert shape.experts_bytes(form) == model.frozen.num_bytes(form)
        weights = [p for layer in model.layers for p in layer.experts.parameters()]
        assert all(p.is_meta == (form != "full") for p in weights)


@pytest.mark.parametrize("form", ["full", "int8", "int4"])
def test_offload_changes_no_bit(tiny_model, random_adapter, form):
    found = []
    for offloaded in (False, True):
        model = tiny_model()
        model.load(random_adapter(model.layout))
        model.frozen.hold({form: offloaded})
        found.append(logits_of(model))
    assert torch.equal(*found)


def test_on_a_gpu_full_weights_are_read_from_main_memory(model, monkeypatch):
    """The branch of a GPU, with a processor in its place and a copy in place of pinned memory."""
    before, places = logits_of(model), []
    monkeypatch.setattr(frozen, "pinned", lambda w: places.append(w.shape) or w.detach().clone())
    monkeypatch.setattr(model.frozen, "on_gpu", True)
    model.frozen.hold({"full": True})
    assert len(places) == 2 * len(model.layers)
    assert all(isinstance(stored, Elsewhere) for s in model.states for stored in s.stored)
    assert all(layer.experts.gate_up_proj.is_meta for layer in model.layers)
    after = logits_of(model)
    assert (after - before).norm() <= 1e-6 * before.norm()


def test_a_form_is_offloaded_only_where_all_who_use_it_ask():
    asked: list[tuple[Frozen, bool]] = [
        ("int8", True),
        ("full", True),
        ("full", False),
        ("int8", True),
    ]
    assert forms_of(asked) == {"int8": True, "full": False}


def test_each_tier_trains_and_is_evaluated_with_its_own_experts(tiny_folder):
    forms = {"high": "full", "low": "int8", "lowest": "int4"}
    tiers = [f"budget.tiers.{tier}.frozen={form}" for tier, form in forms.items()]
    tiers += [f"budget.tiers.{tier}.top_k=2" for tier in ("high", "medium", "low", "lowest")]
    overrides = [f"model.path={tiny_folder}", *SMALL, *tiers]
    run = prepare(load_experiment(QUICKSTART, overrides))
    assert set(run.setup.model.frozen.forms) == {"full", "int8", "int4"}
    tasks = {tier: Task(1, 0, tier, 2, run.server.rescaler(2), run.setup.initial) for tier in forms}
    deltas, losses = [], []
    for tier, form in forms.items():
        deltas.append(run.client.train(tasks[tier]).delta.flat)
        assert run.setup.model.frozen.used == form
        losses.append(run.scorer.score(pack_task(tasks[tier]), "test").loss)
    assert torch.equal(run.client.train(tasks["lowest"]).delta.flat, deltas[-1])
    assert len(set(losses)) == 3
    assert not any(torch.equal(deltas[i], deltas[i - 1]) for i in range(3))


def test_a_form_that_does_not_exist_is_a_fault_of_the_config():
    with pytest.raises(ConfigError) as caught:
        load_experiment(QUICKSTART, ["budget.tiers.low.frozen=int2"])
    assert "budget.tiers.low.frozen" in str(caught.value)
    assert "'full', 'int8'" in str(caught.value).replace('"', "'")


def test_what_a_plan_settles_on_becomes_the_tiers_own(tiny_model):
    work = Work(1, 1, 1, True, 1, 8, 4, 8, 4, frozen="int4", offload=True)
    shape = shape_of(tiny_model())
    option = Option(2, work, memory(shape, work.setting(2, longest=True), Constants()), 1.0, 0.0)
    levels = Auto().fixed({"full": Plan((option,), option, 1e9, ())}, 4)
    assert levels.tiers["full"] == Tier(
        top_k=2,
        share=1.0,
        batch_size=1,
        accumulation=1,
        recompute=True,
        frozen="int4",
        offload=True,
    )


def test_what_a_tier_costs_goes_by_its_form(tiny_model):
    model, e = tiny_model(), Experiment()
    layouts, shape = e.aggregation.layouts(model.layout, 1), shape_of(model)
    args = model, layouts, 2, 8, e.upload
    full, int8 = (cost(*args, frozen=form).memory_bytes for form in ("full", "int8"))
    assert full - int8 == shape.experts_bytes("full") - shape.experts_bytes("int8")
    away = cost(*args, offload=True).memory_bytes
    assert full - away == shape.experts_bytes("full")


def test_restoring_is_timed_by_value():
    assert 0 < restoring_seconds(torch.ones(2, 64, 64), "int8", 2) < 1e-3

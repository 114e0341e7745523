"""Laws of plans with subsets of experts: where they stand on the ladder, and what they take."""

from dataclasses import replace

import pytest
import torch

from fedmoe.budget import Auto
from fedmoe.budget.cost import cost
from fedmoe.budget.model import Constants, kept_bytes, memory, step_seconds
from fedmoe.budget.plan import options, plan_for, subsets
from fedmoe.budget.probe import Machine
from fedmoe.budget.shape import Setting, shape_of
from fedmoe.budget.work import Work
from fedmoe.cli.plan import chosen
from fedmoe.config.schema import Experiment
from fedmoe.data.text import Tokens
from fedmoe.models.gating import TopPGating
from fedmoe.models.memory.subset import Subset
from fedmoe.runs.subsets import possible
from fedmoe.training.trial import trial_steps

WORK = Work(10, 8, 1, True, 4, 64, 16, 32, 8)
CONSTANTS = Constants(fixed_bytes=1e5, seconds_per_flop=3e-11, seconds_per_restored={"int4": 1e-9})
COUNTS = torch.tensor([[5, 0, 2, 9, 0, 1, 3, 3], [0, 0, 0, 7, 0, 8, 9, 2]])
MERGE, DROP = Subset(keep=6, left_out="merge"), Subset(keep=6)


@pytest.fixture(scope="module")
def model(tiny_model):
    """A model of a size at which 4 bits are possible, and experts outweigh a micro-batch."""
    return tiny_model(hidden_size=64, intermediate_size=512, num_experts_per_tok=2)


@pytest.fixture(scope="module")
def shape(model):
    return shape_of(model)


def plan(shape, free, **how):
    machine = Machine("m", round(free), 10**12, False, 1)
    return plan_for(shape, WORK, machine, CONSTANTS, **how)


def need(shape, work, top_k=2):
    """Bytes with the most experts that a token can be given, or with fewer."""
    return memory(shape, work.setting(top_k, longest=True), CONSTANTS).total


def test_subsets_come_after_4_bits_and_before_offload_the_larger_first(shape):
    int4 = replace(WORK, frozen="int4")
    tried = [*subsets(shape, ("merge", "drop"))]
    assert [(s.keep, s.left_out) for s in tried] == [
        (6, "merge"),
        (6, "drop"),
        (4, "merge"),
        (4, "drop"),
        (2, "merge"),
        (2, "drop"),
    ]
    rungs = [int4, *(replace(int4, subset=s) for s in tried), replace(WORK, offload=True)]
    # At the smallest micro-batch, or a smaller one of the rung before would do.
    rungs = [replace(rung.with_batch(1), accumulation=8) for rung in rungs]
    needs = [need(shape, rung) for rung in rungs]
    assert needs == sorted(needs, reverse=True)
    for rung, needed in zip(rungs, needs, strict=True):
        chosen = plan(shape, needed / 0.9 + 2).choice.work
        assert (chosen.frozen, chosen.subset, chosen.offload) == (
            rung.frozen,
            rung.subset,
            rung.offload,
        )
    made = plan(shape, needs[4] / 0.9 + 2)
    said = [i for i, reason in enumerate(made.reasons) if reason.startswith("A subset of 6 of 8")]
    assert "the others merged into one" in made.reasons[said[0]]
    assert "the others dropped" in made.reasons[said[-1]]
    assert "4 bits in place of" in made.reasons[said[0]]


def test_only_what_is_possible_is_tried(shape):
    assert {s.left_out for s in subsets(shape, ("drop",))} == {"drop"}
    assert [*subsets(shape, ())] == []
    assert min(s.keep for s in subsets(replace(shape, top_k=5), ("drop",))) == 5
    room = need(shape, replace(WORK.with_batch(1), frozen="int4", subset=DROP)) / 0.9 + 2
    assert plan(shape, room).choice.work.subset == DROP
    assert plan(shape, room, outcomes=()).choice.work.offload


def test_what_is_possible_follows_from_the_run(model):
    assert possible(Experiment(), model) == ("merge", "drop")
    assert possible(Experiment(), model, on_its_own=True) == ("drop",)
    assert possible(Experiment(gating=TopPGating()), model) == ()


def test_a_planned_subset_becomes_the_tiers_own(shape):
    work = replace(WORK, frozen="int4", subset=MERGE)
    made = options(shape, work, Machine("m", 10**9, 10**9, False, 1), CONSTANTS)[1]
    found = plan(shape, need(shape, work) / 0.9 + 2)
    found = replace(found, choice=made)
    assert " frozen=int4 subset={keep: 6, left_out: merge}" in chosen(found)
    levels = Auto().fixed({"full": found}, 2)
    assert (levels.tiers["full"].subset, levels.tiers["full"].frozen) == (MERGE, "int4")
    assert levels.tiers["full"].memory_options == "int4, 6 kept, others merged into one"


@pytest.mark.parametrize("form", ["full", "int8", "int4"])
@pytest.mark.parametrize("subset", [MERGE, DROP])
def test_predicted_bytes_are_those_that_are_held(tiny_model, monkeypatch, form, subset):
    """On the path of a GPU, with a processor in its place and a copy in place of pinned memory."""
    made = tiny_model(hidden_size=64, intermediate_size=128, num_experts_per_tok=2)
    monkeypatch.setattr("fedmoe.models.memory.frozen.pinned", lambda w: w.detach().clone())
    monkeypatch.setattr(made.frozen, "on_gpu", True)
    monkeypatch.setattr("fedmoe.models.memory.stored.Quantised.is_elsewhere", True)
    shape = shape_of(made)
    made.frozen.hold({form: True})
    made.kept.keep(COUNTS, subset)
    held = [part.num_bytes for state in made.states for part in state.stored]
    for state in made.states:
        for part in state.merged[:2] if state.merged else ():
            held.append(part.nbytes if isinstance(part, torch.Tensor) else part.num_bytes)
    assert sum(held) == shape.experts_bytes(form, subset)
    dense = shape.weight_bytes - shape.experts_bytes("full")
    assert kept_bytes(shape, Setting(2, 1, 8, 4, frozen=form, subset=subset)) == sum(held) + dense


def test_a_subset_takes_no_more_time_than_all_and_its_profile_is_in_the_plan(shape):
    few, all_ = (Setting(2, 1, 8, 4, frozen="int4", subset=s) for s in (DROP, None))
    assert step_seconds(shape, few, CONSTANTS) < step_seconds(shape, all_, CONSTANTS)
    machine = Machine("m", 10**9, 10**9, False, 1)
    plain, own = (
        options(shape, replace(WORK, subset=s), machine, Constants())[0].compute_seconds
        for s in (None, replace(DROP, examples=10**6))
    )
    assert own > 10 * plain


def test_a_trial_step_is_made_with_as_many_experts_as_a_subset_keeps(model):
    step = trial_steps(model, [Tokens(tuple(range(2, 30)), 4)], 0)
    for subset, merges in ((MERGE, True), (DROP, False), (None, False)):
        step(Setting(2, 1, 8, 4, subset=subset))()
        left = [state.left_out for state in model.states]
        assert [x is None or int(x.sum()) == 2 for x in left] == [True, True]
        assert (left[0] is None, model.kept.merges) == (subset is None, merges)


def test_what_a_tier_costs_goes_by_its_subset(model, shape):
    e = Experiment()
    args = model, e.aggregation.layouts(model.layout, 1), 2, 8, e.upload
    full, some = cost(*args), cost(*args, subset=MERGE)
    assert full.memory_bytes - some.memory_bytes == shape.experts_bytes("full") // 8
    assert (some.expert_bytes, full.expert_bytes) == (
        shape.experts_bytes("full", MERGE),
        shape.experts_bytes("full"),
    )
    assert some.bytes_up - full.bytes_up == 8 * 2
    assert cost(*args, subset=DROP).bytes_up == full.bytes_up


def test_a_subset_needs_room_elsewhere_for_all_experts_in_its_form(shape):
    work = replace(WORK.with_batch(1), frozen="int4", subset=DROP)
    for k, offload_bytes in ((2, shape.experts_bytes("int4") * 2), (1, 1000)):
        free = round(need(shape, work, k) / 0.9 + 2)
        machine = Machine("m", free, 10**12, False, 1, offload_bytes=offload_bytes)
        made = plan_for(shape, WORK, machine, CONSTANTS)
        assert (made.choice.work.subset if made.choice else None) == (DROP if k == 2 else None)
    said = [reason for reason in made.reasons if reason.startswith("A subset of the frozen")]
    assert len(said) == 1
    assert made.choice is None

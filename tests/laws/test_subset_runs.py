"""Laws of subsets of experts in a run: what is left out is silent, and the door counts it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedmoe.adapter import initial_adapter
from fedmoe.budget import Tier
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, WireError
from fedmoe.messages.codec import pack_task, pack_update
from fedmoe.messages.records import Task, Update
from fedmoe.messages.validation import Limits, check_counts
from fedmoe.models.memory.subset import Subset
from fedmoe.rounds import finish_round, plan_round
from fedmoe.runs.local.in_process import InProcess, Pool
from fedmoe.runs.prepare import prepare
from fedmoe.seeds import generator

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
SMALL = [
    "data.per_domain=20",
    "evaluation.validation_examples=2",
    "evaluation.test_examples=4",
    "training.steps=2",
    "training.batch_size=2",
    "evaluation.max_new_tokens=2",
    "clients_per_round=8",
    "training.probe_examples=2",
]
TIERS = {
    "high": {},
    "medium": {"subset": {"keep": 3}},
    "low": {"subset": {"keep": 3, "left_out": "merge", "profile": "int8"}},
    "lowest": {"subset": {"keep": 2, "left_out": "merge"}, "frozen": "int8"},
}


def made(folder, tiers=None, *more):
    asked = [
        f"budget.tiers.{name}={tier | {'top_k': 2}}".replace("'", "")
        for name, tier in (tiers or TIERS).items()
    ]
    overrides = [f"model.path={folder}", *SMALL, *asked, *more]
    return prepare(load_experiment(QUICKSTART, overrides))


@pytest.fixture(scope="module")
def run(tiny_folder):
    return made(tiny_folder)


def task_of(run, tier, round=1, top_k=2):
    """A task of the tier's first client, with an adapter that changes something."""
    client = next(m.client for m in run.server.members if m.tier == tier)
    adapter = initial_adapter(run.setup.model.layout, generator(round, "adapter"))
    return Task(round, client, tier, top_k, run.server.rescaler(top_k), adapter)


def test_a_subset_of_all_is_no_subset_to_the_bit(tiny_folder, run):
    other = made(
        tiny_folder,
        {
            "high": {},
            "medium": {"subset": {"keep": 8}},
            "low": {"subset": {"keep": 8, "left_out": "merge"}},
            "lowest": {},
        },
    )
    task = task_of(run, "high")
    wanted = run.client.answer(task)
    for tier in ("high", "medium", "low"):
        found = other.client.train(replace(task, tier=tier))
        assert torch.equal(found.delta.flat, run.server.read(wanted, task).delta.flat)
        assert found.merged is None
        assert len(pack_update(found).buffer) == len(wanted.buffer)


@pytest.mark.parametrize("tier", ["medium", "low", "lowest"])
def test_an_expert_left_out_has_no_token_and_a_delta_of_zero(run, tier):
    task = task_of(run, tier)
    update = run.server.read(run.client.answer(task), task)
    keep, merges = TIERS[tier]["subset"]["keep"], tier != "medium"
    assert ((update.counts > 0).sum(1) <= keep).all()
    assert (update.counts > 0).sum() >= 2 * 2
    merged = update.merged if merges else torch.zeros(2).long()
    assert torch.equal(update.counts.sum(1) + merged, torch.full((2,), update.tokens * 2))
    assert merges == bool(merged.any())
    moved = 0
    for entry, view in update.delta.layout.views(update.delta.flat):
        if entry.layer is not None:
            assert view[update.counts[entry.layer] == 0].eq(0).all()
            moved += view.ne(0).any()
    assert moved
    # What was trained with it is the client's affair alone: the next has its own, or none.
    state = finish_round(run.server.first_state(), run.setup.experiment.aggregation, [update])
    idle = update.counts == 0
    for entry, before in run.setup.initial.layout.views(run.setup.initial.flat):
        after = state.adapter.views()[entry.name]
        if entry.layer is not None:
            assert torch.equal(after[idle[entry.layer]], before[idle[entry.layer]])


def test_who_is_kept_follows_from_seed_round_and_client_and_leaves_others_alone(run):
    def kept(task):
        run.client.configure(task, task.adapter)
        return torch.stack([~state.left_out[:-1] for state in run.setup.model.states])

    task = task_of(run, "medium")
    first = kept(task)
    assert first.sum(1).tolist() == [3, 3]
    full = run.client.train(task_of(run, "high"))
    assert all(state.left_out is None for state in run.setup.model.states)
    assert (full.counts > 0).sum() > 2 * 3
    assert torch.equal(kept(task), first)
    rounds = (kept(replace(task, round=r)) for r in range(2, 40))
    assert any(not torch.equal(other, first) for other in rounds)


def test_quantised_profiles_count_with_other_weights_and_train_with_the_tiers_own(run):
    used = []
    original = run.setup.model.frozen.use
    run.setup.model.frozen.use = lambda form: used.append(form) or original(form)
    try:
        run.client.train(task_of(run, "low"))
    finally:
        del run.setup.model.frozen.use
    assert used == ["full", "int8", "full"]


def test_the_same_bits_in_this_process_and_on_a_pool(run, tmp_path):
    def of(transport):
        tasks = plan_round(run.server.first_state(), run.server.members, 8, 0, run.server.send_to)
        updates = list(transport(tasks))
        assert all(isinstance(update, Update) for update in updates)
        return [(u.delta.digest(), u.counts.tolist(), str(u.merged)) for u in updates]

    pool = Pool(run.server, run.scorer, 2, folder=tmp_path)
    try:
        assert of(pool) == of(InProcess(run.server, run.scorer))
    finally:
        pool.close()


def test_a_tier_is_scored_as_it_trains_by_the_mean_of_its_clients(run):
    mine = [m.client for m in run.server.members if m.tier == "medium"]
    assert run.server.scored("medium") == mine[:4]
    assert run.server.scored("high") == [0]
    task = task_of(run, "medium")
    found = {}
    for tier in ("high", "medium", "low"):
        found[tier] = run.scorer.score(pack_task(replace(task, tier=tier)), "test").loss
    assert len(set(found.values())) == 3


def test_the_door_counts_merged_choices_to_the_last_one(run):
    task, plain = task_of(run, "low"), task_of(run, "high")
    update = run.client.train(task)
    run.server.read(pack_update(update), task)
    lies = {
        "one fewer": replace(update, merged=update.merged - 1),
        "negative": replace(update, merged=torch.full((2,), -1)),
        "none named": replace(update, merged=None),
        "far too many": replace(update, merged=torch.full((2,), 2**62)),
    }
    for lie in lies.values():
        with pytest.raises(WireError) as caught:
            run.server.read(pack_update(lie), task)
        assert caught.value.code in ("counts", "size")
    honest = run.client.train(plain)
    named = replace(honest, merged=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(WireError, match="buffer of"):
        run.server.read(pack_update(named), plain)


def test_more_experts_than_a_client_keeps_are_refused():
    counts = torch.tensor([[4, 4, 0, 0], [3, 3, 2, 0]])
    check_counts(counts, 4, 2)
    check_counts(counts, 4, 2, Limits(most_experts=3))
    with pytest.raises(WireError, match=r"3 experts of a layer have tokens; .*keeps 2"):
        check_counts(counts, 4, 2, Limits(most_experts=2))
    merging = Limits(most_experts=3, merges=True)
    check_counts(counts - 1 * (counts > 0), 4, 2, merging, torch.tensor([2, 3]))
    with pytest.raises(WireError, match="expected tokens"):
        check_counts(counts, 4, 2, merging, torch.tensor([1, 0]))


def test_fewer_than_top_k_is_a_fault_of_the_config():
    tier = "budget.tiers.low={top_k: 4, subset: {keep: 3}}"
    with pytest.raises(ConfigError, match="fewer than the top_k of 4"):
        load_experiment(QUICKSTART, [tier])
    Tier(top_k=4, subset=Subset(keep=4))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{keep: 0}", "1 or more"),
        ("{}", "keep"),
        ("8", "subset"),
        ("{keep: 8, left_out: forget}", "'drop'"),
        ("{keep: 8, profile: int2}", "'int8'"),
        ("{kep: 8}", "did you mean"),
    ],
)
def test_broken_yaml_is_said_in_the_users_words(value, said):
    with pytest.raises(ConfigError) as caught:
        load_experiment(QUICKSTART, [f"budget.tiers.low.subset={value}"])
    assert "budget.tiers.low.subset" in str(caught.value)
    assert said in str(caught.value).replace('"', "'")


@pytest.mark.parametrize(
    ("subset", "more", "said"),
    [
        ({"keep": 9}, [], "over the model's 8 experts"),
        ({"keep": 3}, ["aggregation.name=ub_smoe"], "ub_smoe"),
        ({"keep": 3}, ["gating.name=top_p"], "needs gating.name 'top_k'"),
        ({"keep": 3}, ["losses.similarity=0.1"], "losses.similarity"),
        ({"keep": 3}, ["adapter.router=true", "losses.alignment=0.1"], "losses.alignment"),
        ({"keep": 3}, ["rescaling={name: static, by: mass}"], "rescaling.by 'mass'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_a_round(tiny_folder, subset, more, said):
    with pytest.raises(ConfigError) as caught:
        made(
            tiny_folder, {"high": {}, "medium": {}, "lowest": {}, "low": {"subset": subset}}, *more
        )
    assert "budget.tiers.low.subset" in str(caught.value)
    assert said in str(caught.value)


def test_a_subset_of_a_tier_without_clients_has_nothing_to_score(tiny_folder):
    tiers = {
        "high": {"share": 1.0},
        "low": {"share": 0.0, "subset": {"keep": 3}},
        "medium": {"share": 0.0},
        "lowest": {"share": 0.0},
    }
    with pytest.raises(ConfigError, match=r"tiers.low: has no client, so that its subset"):
        made(tiny_folder, tiers)

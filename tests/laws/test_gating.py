"""Laws of gatings: honest counts, the budget kept, the model's own router where they say so."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from exports import export

from fedmoe.adapter import Adapter
from fedmoe.data.text import Tokens
from fedmoe.errors import ModelError, WireError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.records import Task
from fedmoe.messages.validation import Limits, check_counts
from fedmoe.models import experts
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.gating import (
    GATINGS,
    CompetitionGating,
    ExpertChoiceGating,
    Gates,
    HierarchicalGating,
    NoisyTopKGating,
    Top1Gating,
    TopKGating,
    TopPGating,
)
from fedmoe.models.gating.outputs import responses
from fedmoe.models.gating.rule import Call
from fedmoe.models.rescaling import NoRescaling
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training

MEMBERS = GATINGS.members
EXPERTS, FULL = 8, 4
IDS = torch.arange(2, 38).view(2, 18) * 7 % 60 + 2
VALID = torch.arange(18) < torch.tensor([[18], [11]])


@pytest.fixture(scope="module")
def model_with(tiny_base, random_adapter):
    """A function that makes a tiny model under a gating, LoRA and routers' shifts random."""

    made = {}

    def make(gating, family="olmoe", **settings):
        key = f"{gating} {family} {settings}"
        if key not in made:
            experts.register()
            base = tiny_base(family)
            base.set_experts_implementation(experts.IMPLEMENTATION)
            adapter = LoRA(**({"rank": 2, "router": True} | settings))
            made[key] = AdaptedModel(base, adapter, NoRescaling(), gating)
        model = made[key]
        model.load(random_adapter(model.layout))
        model.set_budget(FULL)
        return model

    return make


@torch.no_grad()
def routed(model, top_k=FULL, seed=None, draw=None, ids=IDS, valid=VALID):
    """Each router's choice for `ids`, and the counts; in training where there is a seed."""
    model.set_budget(top_k)
    with model.counting() as counts, model.gates.recording() as seen:
        if seed is None:
            model.hidden(ids, valid)
        else:
            with model.gates.training(torch.Generator().manual_seed(seed)) as turn:
                turn.begin(0.0)
                turn.draw = turn.draw if draw is None else draw
                model.hidden(ids, valid)
        return list(seen), counts


def same(left, right):
    return all(
        torch.equal(a.index, b.index) and torch.equal(a.weights, b.weights)
        for a, b in zip(left[0], right[0], strict=True)
    )


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_counts_are_exact_within_the_budget_and_free_of_padding(model_with, member, family):
    model, real = model_with(member(), family), VALID.flatten()
    for top_k in (1, 3, FULL):
        for seed in (None, 1):
            seen, counts = routed(model, top_k, seed, draw=0.0)
            for layer, one in enumerate(seen):
                chosen = one.index[real]
                rows = chosen[chosen < EXPERTS]
                assert torch.equal(counts[layer], torch.bincount(rows, minlength=EXPERTS))
                for token in chosen.tolist():
                    named = [e for e in token if e < EXPERTS]
                    assert len(named) == len(set(named))
                assert one.weights[one.index == EXPERTS].eq(0).all()
            bounds = None if member.exact_counts else member().per_token
            check_counts(counts, int(real.sum()), top_k, Limits(per_token=bounds))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_a_gating_of_training_leaves_everything_else_to_the_router(model_with, member):
    own = routed(model_with(TopKGating()), 3)
    gated = model_with(member())
    if not member.serves or member.own:
        # Entries behind the common ones: the same random values.
        assert same(routed(gated, 3), own)
    assert not model_with(TopKGating()).gates.layers[0].router._forward_hooks


def test_top_1_is_the_models_own_choice_at_k_1_whatever_the_budget(model_with):
    own, gated = model_with(TopKGating()), model_with(Top1Gating())
    own.set_budget(1)
    expected = own.hidden(IDS, VALID)
    for top_k in (1, 2, FULL):
        gated.set_budget(top_k)
        assert torch.equal(gated.hidden(IDS, VALID), expected)


def test_top_p_spans_from_one_expert_to_the_models_own_choice(model_with):
    own = routed(model_with(TopKGating()))
    assert same(routed(model_with(TopPGating(threshold=1.0))), own)
    sizes = []
    for threshold in (1e-300, 1e-6, 0.3, 0.6, 0.9, 1.0):
        _, counts = routed(model_with(TopPGating(threshold=threshold)))
        sizes.append(int(counts[0].sum()))
    tokens = int(VALID.sum())
    assert sizes[0] == tokens
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] < sizes[-1] == tokens * FULL


def test_top_p_of_threshold_1_takes_k_experts_of_the_surest_router():
    logits = torch.tensor([[100.0, *[0.0] * 7]])
    call = Call(torch.zeros(1, 3), logits, 4, None, None, None, lambda: logits)
    for threshold, expected in ((1.0, 4), (0.999, 1)):
        chosen = TopPGating(threshold=threshold).choose(call)
        assert int((chosen.index < EXPERTS).sum()) == expected


def test_top_p_takes_experts_until_they_hold_the_threshold(model_with):
    seen, _ = routed(model_with(TopPGating(threshold=0.6)))
    for one in seen:
        shares = torch.softmax(one.logits, -1)
        for t, row in enumerate(one.index.tolist()):
            taken, total = [], 0.0
            for e in shares[t].argsort(descending=True).tolist():
                if total < 0.6 and len(taken) < FULL:
                    taken.append(e)
                    total += float(shares[t, e])
            assert [e for e in row if e < EXPERTS] == taken


@pytest.mark.parametrize(("groups", "chosen"), [(4, 2), (2, 1), (8, 4)])
def test_hierarchical_takes_the_best_experts_of_the_best_groups(model_with, groups, chosen):
    seen, _ = routed(model_with(HierarchicalGating(num_groups=groups, chosen_groups=chosen)), 3)
    size = EXPERTS // groups
    for one in seen:
        shares = torch.softmax(one.logits, -1)
        for t, row in enumerate(one.index.tolist()):
            sums = [float(shares[t, g * size : (g + 1) * size].sum()) for g in range(groups)]
            best = sorted(range(groups), key=lambda g: -sums[g])[:chosen]
            inside = [e for e in range(EXPERTS) if e // size in best]
            assert row == sorted(inside, key=lambda e: -float(shares[t, e]))[:3]


def test_hierarchical_with_all_groups_is_the_models_own_choice(model_with):
    gated = model_with(HierarchicalGating(num_groups=4, chosen_groups=4))
    assert same(routed(gated), routed(model_with(TopKGating())))


def test_expert_choice_gives_experts_equal_loads_of_the_tokens_of_largest_share(model_with):
    seen, counts = routed(model_with(ExpertChoiceGating()), 2, seed=0)
    tokens = int(VALID.sum())
    capacity = tokens * 2 // EXPERTS
    assert counts.eq(capacity).all()
    one, real = seen[0], VALID.flatten()
    shares = torch.softmax(one.logits, -1)
    for e in range(EXPERTS):
        order = [t for t in shares[:, e].argsort(descending=True).tolist() if real[t]]
        assert {t for t in range(len(real)) if e in one.index[t]} == set(order[:capacity])


def test_expert_choice_of_fewer_tokens_than_experts_is_by_tokens(model_with):
    valid = torch.zeros_like(VALID)
    valid[0, :5] = True
    own = routed(model_with(TopKGating()), 1, valid=valid)
    assert same(routed(model_with(ExpertChoiceGating()), 1, seed=0, valid=valid), own)


def test_noise_comes_from_its_stream_alone(model_with):
    model = model_with(NoisyTopKGating())
    first = routed(model, 2, seed=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert same(routed(model, 2, seed=1), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(routed(model, 2, seed=2), first)
    faint = model_with(NoisyTopKGating(scale=1e-9, learned=False))
    assert torch.equal(
        routed(faint, 2, seed=1)[0][0].index, routed(model_with(TopKGating()), 2)[0][0].index
    )


def test_noise_has_the_spread_of_the_formula(model_with):
    model = model_with(NoisyTopKGating(scale=2.0))
    seen, _ = routed(model, 2, seed=1)
    values = model.read().views()
    for layer, one in zip(model.layers, seen, strict=True):
        weight = values[f"{layer.router_path}.noise.shift"]
        assert one.choice is not None
        expected = 2.0 * torch.nn.functional.softplus(one.hidden @ weight.T)
        torch.testing.assert_close(one.choice.spread, expected)
        epsilon = (one.logits - one.clean) / expected
        assert abs(float(epsilon.mean())) < 0.25
        assert 0.75 < float(epsilon.std()) < 1.25


@torch.no_grad()
def test_competition_takes_the_experts_of_the_strongest_answers(model_with):
    model = model_with(CompetitionGating(first=1.0))
    seen, _ = routed(model, 2, seed=0)
    for layer, state, one in zip(model.layers, model.states, seen, strict=True):
        a1, b1, a2, b2, scale = state.lora
        for t in range(0, len(one.hidden), 5):
            sizes = []
            for e in range(EXPERTS):
                w1 = layer.experts.gate_up_proj[e] + scale * b1[e] @ a1[e]
                w2 = layer.experts.down_proj[e] + scale * b2[e] @ a2[e]
                gate, up = (w1 @ one.hidden[t]).chunk(2)
                sizes.append(float((w2 @ (layer.experts.act_fn(gate) * up)).norm()))
            assert one.index[t].tolist() == sorted(range(EXPERTS), key=lambda e: -sizes[e])[:2]
        again = responses(layer.experts, one.hidden)
        assert torch.equal(again, one.choice.responses)
    own = routed(model_with(TopKGating()), 2)
    assert not same((seen, None), own)
    assert same(routed(model, 2, seed=0, draw=1.0), own)  # a step that does not compete


def test_competitions_share_falls_with_time_or_with_what_routers_have_learnt(model_with):
    model = model_with(CompetitionGating())
    with model.gates.training(torch.Generator().manual_seed(0)) as turn:
        linear = CompetitionGating(first=0.8, last=0.2)
        turn.done = 0.5
        assert linear.share(turn) == pytest.approx(0.5)
        learned = CompetitionGating(schedule="learned", first=0.8, last=0.1)
        assert learned.share(turn) == 0.8
        turn.draw = 0.0
        with torch.no_grad():
            model.hidden(IDS, VALID)
        assert len(turn.overlaps) == len(model.layers)
        turn.begin(0.6)
        assert 0 < turn.agreement < 1
        assert learned.share(turn) == pytest.approx(0.8 * (1 - turn.agreement))
        turn.agreement = 1.0
        assert learned.share(turn) == 0.1


ROWS = [
    Tokens(tuple(np.random.default_rng(i).integers(2, 60, n).tolist()), 2)
    for i, n in enumerate((9, 14, 12, 10, 16, 11))
]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_a_replayed_round_has_the_same_bits_and_passes_the_door(model_with, member):
    model = model_with(member())
    start = Adapter(model.layout, model.read().flat.clone())
    tasks = [Task(r, 0, "t", 2, torch.ones(2), start) for r in (1, 2)]
    settings = Training(steps=1, batch_size=3, probe_examples=1)
    updates = [
        train_client(model, ROWS, 0, task, settings, num_rounds=2, seed=0)
        for task in (tasks[0], tasks[1], tasks[0])
    ]
    assert updates[0].delta.digest() == updates[2].delta.digest() != updates[1].delta.digest()
    assert torch.equal(updates[0].counts, updates[2].counts)
    bounds = None if member.exact_counts else member().per_token
    message = pack_update(updates[0])
    unpack_update(message, model.layout, tasks[0], limits=Limits(per_token=bounds))
    assert model.gates.turn is None
    for entry, view in model.layout.views(updates[0].delta.flat):
        assert not entry.name.endswith("shift") or view.ne(0).any(), entry.name


def test_the_door_refuses_counts_outside_a_gatings_bounds():
    counts = torch.tensor([[3, 2, 1], [2, 2, 2]])
    check_counts(counts, 4, 2, Limits(per_token=lambda _: (1.0, 2.0)))
    for bounds in ((1.0, 1.25), (1.75, 2.0)):
        with pytest.raises(WireError, match=r"routed tokens per layer are \[6, 6\]") as caught:
            check_counts(counts, 4, 2, Limits(per_token=lambda _, b=bounds: b))
        assert caught.value.code == "counts"
    with pytest.raises(WireError, match="tokens \\* top_k"):
        check_counts(counts, 4, 2)


def test_a_gating_that_does_not_fit_the_model_is_refused(model_with):
    layers = model_with(TopKGating()).layers
    with pytest.raises(ModelError, match=r"'flint'.*expected one of olmoe, mixtral, qwen2_moe"):
        Gates(layers, Top1Gating(), "flint", FULL)
    Gates(layers, TopKGating(), "flint", FULL)
    for gating, said in (
        (HierarchicalGating(num_groups=3), "num_groups 3 does not divide 8 experts"),
        (HierarchicalGating(num_groups=2, chosen_groups=3), "is over gating.num_groups"),
        (HierarchicalGating(num_groups=8, chosen_groups=2), "raise gating.chosen_groups"),
    ):
        with pytest.raises(ModelError, match=said):
            model_with(gating)


@pytest.mark.parametrize("gating", [Top1Gating(), TopPGating(), HierarchicalGating()])
def test_a_gating_that_peft_would_not_follow_is_not_exported(model_with, gating, tmp_path):
    model = model_with(gating, router=False)
    with pytest.raises(ModelError, match=f"not by gating.name '{gating.name}'"):
        export(model.read(), model, ModelSettings(), tmp_path / "out")


def test_every_gating_explains_itself():
    for member in MEMBERS:
        assert "arXiv" in (member.__doc__ or ""), member
        for field in fields(member):
            assert field.name == "name" or member.__pydantic_fields__[field.name].description

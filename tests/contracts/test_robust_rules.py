"""Every registered robust rule keeps the laws of a mean, and those that it claims to withstand."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.aggregation import STRATEGIES, FedAvg, Flame
from fedmoe.aggregation.robust import PLAIN, RULES, Clip, NoRule, rule_for, terms, unfit
from fedmoe.aggregation.robust.centred_clipping import CentredClipping
from fedmoe.aggregation.robust.median import Median
from fedmoe.config import Experiment
from fedmoe.errors import AggregationError
from fedmoe.rounds import ServerState, finish_round
from fedmoe.runs.checkpoint import Checkpoint, newest, write_checkpoint

NUMBER = 7
SOME = ((0,), (1, 2))
MIXED = (c.ALL, SOME, c.ALL, ((1,), (0, 1)), c.ALL, SOME, c.ALL)
each = pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.name)
judging = [kind for kind in RULES if kind is not NoRule]


def made(kind):
    return kind(root="rows.jsonl") if "root" in kind.__dataclass_fields__ else kind()


@cache
def a_round(strategy, used=(c.ALL,) * NUMBER, seed=21):
    """A state and updates of clients of one size, and a root update near their mean."""
    state = c.second_state(strategy)
    number = len(used)
    updates = c.clients(
        strategy, state, seed, used=used, examples=(2,) * number, ranks=(c.RANK,) * number
    )[0]
    mean = torch.stack([u.delta.flat for u in updates]).mean(0)
    return state, updates, replace(updates[0], delta=Adapter(updates[0].delta.layout, mean))


def step(rule, strategy, state, updates, root, centre=None):
    return rule.combine(strategy, state, updates, len(updates), centre, root)


@each
def test_every_rule_says_what_it_does_and_whose_it_is(kind):
    assert kind is NoRule or "Source: " in kind.__doc__
    assert kind is NoRule or kind.withstands


@each
def test_the_order_of_clients_is_irrelevant(kind):
    state, updates, root = a_round(Flame(), MIXED)
    sides = [step(made(kind), Flame(), state, us, root) for us in (updates, updates[::-1])]
    c.close(*(c.dense(side.state) for side in sides))
    if kind is not NoRule:
        facts = [{v.client: v for v in side.judgement.clients} for side in sides]
        assert facts[0] == facts[1]


@each
def test_equal_updates_are_the_next_state(kind):
    state, updates, _ = a_round(FedAvg())
    same = [replace(u, delta=updates[0].delta, client=n) for n, u in enumerate(updates)]
    found = step(made(kind), FedAvg(), state, same, same[0]).state
    torch.testing.assert_close(found.flat, (state + same[0].delta).flat, rtol=1e-4, atol=1e-5)


@each
def test_an_expert_that_nobody_used_keeps_every_bit(kind):
    state, updates, root = a_round(Flame(), (((0, 1), (1,)),) * NUMBER)
    new = step(made(kind), Flame(), state, updates, root).state
    for entry, before in state.layout.views(state.flat):
        if entry.layer is not None:
            idle = [2] if entry.layer == 0 else [0, 2]
            assert torch.equal(new.views()[entry.name][idle], before[idle])
    assert not torch.equal(new.flat, state.flat)


@each
def test_without_updates_it_says_so(kind):
    with pytest.raises(AggregationError, match="no client updates"):
        step(made(kind), FedAvg(), c.second_state(FedAvg()), [], None)


@each
def test_factors_that_undo_each_other_do_no_harm(kind):
    """dA = kA, dB = B / (1 + k) - B: the product stays, and rounding decides its sign."""
    state, updates, root = a_round(FedAvg())
    delta = Adapter(state.layout, torch.zeros(state.layout.size))
    for entry, view in delta.layout.views(delta.flat):
        grown = {"A": 1e-3, "B": 1 / (1 + 1e-3) - 1}.get(entry.kind, 0)
        view.copy_(state.views()[entry.name] * grown)
    sent = [*updates[:-1], replace(updates[-1], delta=delta)]
    assert step(made(kind), FedAvg(), state, sent, root).state.flat.isfinite().all()


def test_who_sends_zeros_cannot_hold_the_others_to_nothing():
    state, updates, _ = a_round(FedAvg())
    none = Adapter(state.layout, torch.zeros(state.layout.size))
    for idle in (1, 2, 3):
        sent = [replace(u, delta=none) if n < idle else u for n, u in enumerate(updates[:4])]
        moved = [
            r.combine(FedAvg(), state, sent, 4).state.flat - state.flat for r in (Clip(), PLAIN)
        ]
        assert moved[0].norm() > 0.5 * moved[1].norm()


def lies_of(updates, liars, size):
    """The updates, with random values of that size in place of the liars' own."""
    sent = [*updates]
    for liar in liars:
        chance, shape = torch.Generator().manual_seed(liar), sent[liar].delta.flat.shape
        noise = torch.randn(shape, generator=chance)
        lie = Adapter(sent[liar].delta.layout, size * noise.sign())
        sent[liar] = replace(
            sent[liar], delta=keep_untouched(lie, sent[liar].counts), examples=10**6
        )
    return sent


def norms_of(adapter):
    """The norm of each factor's part of each owner."""
    found = []
    for entry, view in adapter.layout.views(adapter.flat):
        rows = view.flatten(1).norm(dim=1) if entry.layer is not None else view.norm()[None]
        found.append(rows)
    return torch.cat(found)


def check_breakdown(rule, size):
    """One liar in seven, with any values and any size, moves no expert far, nor any value of some.

    Far is three times the largest honest norm: a clipped update is at most twice the median.
    """
    for used, strategy in (((c.ALL,) * NUMBER, FedAvg()), (MIXED, Flame())):
        state, updates, root = a_round(strategy, used)
        new = step(rule, strategy, state, lies_of(updates, [3], size), root).state
        honest = [u.delta for n, u in enumerate(updates) if n != 3]
        most = torch.stack([norms_of(delta) for delta in honest]).amax(0)
        assert (norms_of(new - state) <= 3 * most + 1e-4).all()
    if rule.withstands == "values":
        state, updates, root = a_round(FedAvg())
        sent = torch.stack([u.delta.flat for n, u in enumerate(updates) if n != 3])
        new = step(rule, FedAvg(), state, lies_of(updates, [3], size), root).state
        moved = new.flat - state.flat
        assert (moved >= sent.amin(0) - 1e-5).all()
        assert (moved <= sent.amax(0) + 1e-5).all()


@pytest.mark.parametrize("kind", judging, ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", [0.5, 1e3])
def test_a_liar_moves_no_expert_far(kind, size):
    check_breakdown(made(kind), size)


def test_without_a_rule_it_does():
    with pytest.raises(AssertionError):
        check_breakdown(PLAIN, 1e3)


def test_a_rule_that_clips_nothing_does_not_withstand():
    with pytest.raises(AssertionError):
        check_breakdown(Clip(most_norm=None), 1e3)


@pytest.mark.parametrize(
    ("rule", "most"),
    [(Clip(most_size=None, most_share=0.3), 0.3), (Clip(), 2 / 8), (Clip(most_size=1.5), 0.2)],
)
def test_a_claim_of_a_million_examples_is_no_more_than_the_largest_share(rule, most):
    state, updates, root = a_round(FedAvg())
    told = step(rule, FedAvg(), state, lies_of(updates, [3], 0.5), root).judgement
    assert told.clients[3].share > 0.99
    assert told.clients[3].share_after == pytest.approx(most, abs=1e-4)


def test_a_median_withstands_all_but_half_of_the_voters():
    state, updates, root = a_round(FedAvg())
    sent = torch.stack([u.delta.flat for u in updates[3:]])
    new = step(Median(), FedAvg(), state, lies_of(updates, [0, 1, 2], 1e6), root).state
    moved = new.flat - state.flat
    assert ((moved >= sent.amin(0) - 1e-3) & (moved <= sent.amax(0) + 1e-3)).all()


@pytest.mark.parametrize(
    "kind", [k for k in judging if k.withstands in ("product", "root")], ids=lambda kind: kind.name
)
def test_a_turned_update_loses_weight(kind):
    state, updates, root = a_round(FedAvg())
    near = [
        replace(u, delta=Adapter(u.delta.layout, root.delta.flat + 0.1 * u.delta.flat))
        for u in updates
    ]
    near[2] = replace(near[2], delta=Adapter(near[2].delta.layout, -near[2].delta.flat))
    told = step(made(kind), FedAvg(), state, near, root).judgement.clients
    assert told[2].share_after < 0.8 * told[2].share
    if kind.name in ("krum", "multi_krum", "fltrust"):
        assert told[2].refused == told[2].trained


def test_a_centre_of_other_tensors_is_none():
    state, updates, _ = a_round(FedAvg())
    rule, seen = CentredClipping(), terms.Terms.of(FedAvg(), state, updates)
    known = rule.remembered(seen, Adapter(state.layout, state.flat + 1))
    assert rule.last(seen, known).flat.any()
    other = state.layout.with_rank(c.RANK, scale=7.0)  # as many values
    moved = [replace(u, delta=Adapter(other, u.delta.flat)) for u in updates]
    elsewhere = terms.Terms.of(FedAvg(), Adapter(other, state.flat), moved)
    assert not rule.last(elsewhere, known).flat.any()


def test_a_strategy_that_no_rule_can_judge_is_said_to_have_none():
    assert Experiment().unguarded == ()
    assert "rule" in Experiment(aggregation={"name": "ub_smoe"}).unguarded[0]
    asked = {"aggregation": {"name": "ub_smoe"}, "robust": {"name": "none"}}
    assert Experiment(**asked).unguarded == ()


PLAIN_MEANS = [kind for kind in STRATEGIES if not unfit(kind())]


@pytest.mark.parametrize("kind", PLAIN_MEANS, ids=lambda kind: kind().name)
def test_where_nobody_is_over_a_limit_the_default_is_the_strategy_to_the_bit(kind):
    strategy = c.made(kind)
    for round in (1, 2):
        state = c.second_state(strategy)
        updates, _ = c.clients(strategy, state, 5, round, examples=(2, 2, 2))
        outcome = Clip(most_norm=4.0).combine(strategy, state, updates, 3)
        assert outcome.state.digest() == strategy.combine(state, updates, 3).digest()
        assert all(v.clipped == 0 and v.share == v.share_after for v in outcome.judgement.clients)


@pytest.mark.parametrize("kind", PLAIN_MEANS, ids=lambda kind: kind().name)
def test_a_hidden_factor_is_clipped_whatever_the_product_says(kind):
    """A huge dA behind a B of zero changes no product, but the mean's."""
    strategy = c.made(kind)
    state = strategy.first_state(c.INITIAL)
    updates, _ = c.clients(strategy, state, 5, examples=(2, 2, 2))
    moved = updates[1].delta.copy()
    for entry, view in moved.layout.views(moved.flat):
        view *= 1e4 if entry.kind == "A" or strategy.name == "ffa_lora" else 1
    sent = [updates[0], replace(updates[1], delta=moved), updates[2]]
    new = Clip().combine(strategy, state, sent, 3).state
    assert (new - state).largest() < 4 * max(u.delta.largest() for u in updates)


def test_strategies_that_are_no_plain_mean_refuse_a_rule_and_have_none_by_default():
    refused = {kind().name for kind in STRATEGIES} - {kind().name for kind in PLAIN_MEANS}
    assert {"flora", "flexlora", "scaffold", "ub_smoe", "hetlora"} <= refused
    for kind in STRATEGIES:
        strategy = kind()
        assert (rule_for(None, strategy) is PLAIN) == (strategy.name in refused)
    with pytest.raises(ValueError, match="'krum' needs a weighted mean"):
        Experiment(aggregation={"name": "flora"}, robust={"name": "krum"})
    with pytest.raises(ValueError, match="takes more from clients than both"):
        Experiment(aggregation={"name": "scaffold"}, robust={"name": "clip"})
    with pytest.raises(ValueError, match=r"robust\.root: missing"):
        Experiment(robust={"name": "fltrust"})
    with pytest.raises(ValueError, match="no part that clients keep"):
        Experiment(aggregation={"name": "fedsa_lora"}, robust={"name": "fltrust", "root": "a.csv"})
    assert Experiment(aggregation={"name": "flora"}).robust_rule is PLAIN
    assert Experiment(aggregation={"name": "flora"}, robust={"name": "none"}).robust


def test_a_round_tells_its_judgement_and_keeps_the_centre(tmp_path):
    state, updates, _ = a_round(FedAvg())
    rule = {kind.name: kind for kind in RULES}["centred_clipping"]()
    told, states = [], [ServerState(0, state, {"tier": updates[0].rescaler})]
    for _ in range(2):
        states.append(finish_round(states[-1], FedAvg(), updates, robust=rule, judged=told.append))
    moves = [b.adapter.flat - a.adapter.flat for a, b in pairwise(states)]
    assert torch.equal(states[1].centre["delta"], moves[0])
    assert not torch.allclose(moves[0], moves[1])  # the second starts from the first
    nobody = torch.zeros(2, c.LAYERS, c.EXPERTS, dtype=torch.int64)
    write_checkpoint(tmp_path, Checkpoint(states[1], {}, nobody, nobody))
    read, _ = newest(tmp_path, state.layout, 0)
    assert torch.equal(read.state.centre["delta"], moves[0])
    assert [j.as_json()["rule"] for j in told] == ["centred_clipping"] * 2
    assert told[0].as_json() | {"clients": 0} == {
        "rule": "centred_clipping", "parts": 7, "few": 0, "needed": 5, "clients": 0,
    }  # fmt: skip


def test_large_rounds_are_held_in_files_with_the_same_bits(monkeypatch):
    state, updates, root = a_round(FedAvg())
    found = step(Clip(most_norm=1.0), FedAvg(), state, updates, root).state
    monkeypatch.setattr(terms, "IN_MEMORY", 2 * updates[0].delta.flat.nbytes)
    held = terms.Terms.of(FedAvg(), state, updates).updates
    places = [[u.delta.flat.data_ptr() for u in us] for us in (held, updates)]
    in_memory = [here == there for here, there in zip(*places, strict=True)]
    assert in_memory == [True] * 2 + [False] * 5
    again = step(Clip(most_norm=1.0), FedAvg(), state, updates, root).state
    assert found.digest() == again.digest()


def test_experts_with_few_reporters_are_counted():
    state, updates, root = a_round(Flame(), MIXED)
    judgement = step(made(RULES[5]), Flame(), state, updates, root).judgement
    assert (judgement.rule, judgement.parts, judgement.needed) == ("multi_krum", 7, 5)
    reporters = torch.stack([u.counts.flatten() > 0 for u in updates]).sum(0)
    assert judgement.few == int((reporters < 5).sum()) > 0

"""FLUX against its formulas: who has a role, what a client measures, whose mean an expert is."""

import math
from dataclasses import replace
from fractions import Fraction

import conformance as c
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter
from fedmoe.aggregation.flux import FLUX, roles, roles_by_layer
from fedmoe.data.text import Tokens
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training

REACHED = [((0, 1, 2), (0, 1, 2)), ((0, 1), (1, 2)), ((0, 1, 2), (2,))]
"""The experts of both layers that tokens of three steps reach."""
ROWS = [Tokens((*range(2 + n, 9 + 2 * n),), 2) for n in range(4)]


def slow_roles(utility, measured, number, exploit, turn):
    """One layer, one role at a time."""
    number, chosen = min(number, len(utility)), []
    for _ in range(int(exploit * number)):
        left = [e for e in range(len(utility)) if e not in chosen and measured[e] and utility[e]]
        if left:
            chosen.append(max(left, key=lambda e: (utility[e], -e)))
    while len(chosen) < number:
        left = [e for e in range(len(utility)) if e not in chosen]
        chosen.append(min(left, key=lambda e: (measured[e], (e - turn) % len(utility))))
    return chosen


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=7),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    st.integers(0, 20),
)
def test_roles_go_to_the_largest_utilities_and_the_oldest(known, number, exploit, turn):
    utility, measured = ([pair[i] for pair in known] for i in (0, 1))
    rows = (torch.tensor([x, x], dtype=torch.float) for x in (utility, measured))
    found = roles(*rows, [number, number - 1], exploit, turn)
    for layer, each in enumerate((number, number - 1)):
        wanted = sorted(slow_roles(utility, measured, each, exploit, turn))
        assert found[layer].nonzero().flatten().tolist() == wanted


def slow_roles_by_layer(counts, total):
    """Exact fractions; a layer that would overflow is filled, and the rest begins anew."""
    experts, layers, given = len(counts[0]), len(counts), {}
    b = {}
    for number, row in enumerate(counts):
        f = [Fraction(n, sum(row)) for n in row]
        v = sum((x - Fraction(1, experts)) ** 2 for x in f) / experts
        b[number] = (layers - number) / max(v, Fraction(1, 10**4 * experts**2))
    while True:
        left = [n for n in b if n not in given]
        rest = total - sum(given.values())
        share = {n: rest * b[n] / sum(b[m] for m in left) for n in left}
        if not (full := [n for n in left if share[n] >= experts]):
            return [given.get(n, math.floor(share.get(n, 0))) for n in b]
        given |= dict.fromkeys(full, experts)


@settings(max_examples=60)
@given(
    st.integers(1, 4).flatmap(
        lambda e: st.lists(st.lists(st.integers(1, 9), min_size=e, max_size=e), min_size=1)
    ),
    st.integers(0, 30),
)
def test_early_and_evenly_used_layers_have_more_roles(counts, total):
    rows = torch.tensor(counts, dtype=torch.float64)
    found = roles_by_layer(rows / rows.sum(1, keepdim=True), total)
    assert found == slow_roles_by_layer(counts, total)


def test_roles_are_spread_over_layers_by_what_the_last_round_told():
    found = {}
    for spread in ("even", "utility", "activation"):
        strategy = FLUX(experts={"tier": 1}, exploit=1.0, spread=spread)
        task, local = c.start_of(strategy, strategy.first_state(c.INITIAL))
        assert local.backward.chosen.sum(1).tolist() == ([2, 0] if spread == "utility" else [1, 1])
        c.update_of(task, local, c.trained_by(local, 1), ((0,), (0, 1, 2)))
        told = local.own.flat.view(-1, 2, 3).clone()
        told[0], told[1] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 1.0
        if spread == "activation":
            torch.testing.assert_close(told[2], torch.tensor([[1.0, 0, 0], [1 / 3] * 3]))
        own = Adapter(local.own.layout, told.flatten())
        again = strategy.local(replace(task, round=2), local.layouts, c.INITIAL, own)
        found[spread] = again.backward.chosen.int().tolist()
    assert found["even"] == [[0, 0, 1], [0, 0, 1]]
    assert found["utility"] == [[0, 0, 0], [0, 1, 1]]
    assert found["activation"] == [[0, 0, 0], [0, 0, 1]]


def test_a_client_tries_out_every_expert_and_keeps_what_it_measured():
    strategy, own = FLUX(experts={"tier": 1}, exploit=0.0), None
    state, seen = strategy.first_state(c.INITIAL), set()
    for round in (1, 2, 3):
        task, _ = c.start_of(strategy, state, round)
        local = strategy.local(task, c.layouts_of(strategy, round), c.INITIAL, own)
        c.update_of(task, local, c.trained_by(local, 1))
        own = local.own
        seen |= {int(x) for x in local.backward.chosen[0].nonzero()}
    assert seen == {0, 1, 2}
    assert sorted(own.flat.view(2, 2, 3)[1, 0].tolist()) == [1.0, 2.0, 3.0]


def test_the_utility_is_the_tokens_times_the_root_of_the_mean_squared_gradient():
    strategy = FLUX(experts={"tier": 2})
    _, local = c.start_of(strategy, strategy.first_state(c.INITIAL))
    grads = [
        torch.randn(c.PLAIN.size, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3)
    ]
    for number, grad in enumerate(grads):
        before = grad.clone()
        local.correct(grad, local.before.flat, c.counts_of(REACHED[number]))
        assert torch.equal(grad, before)
    for layer, used in enumerate([[0, 0, 1, 2], [2, 2, 1, 1]]):
        local.backward.without(layer, torch.tensor(used).unsqueeze(1), torch.ones(4, 1))
    local.finish(local.before, c.counts_of(c.ALL))
    utility = local.own.flat.view(2, 2, 3)[0]
    for layer, tokens in enumerate([[2, 1, 1], [0, 2, 2]]):
        for e in range(3):
            squares = [
                sum(
                    float((view[e].double() ** 2).sum())
                    for entry, view in c.PLAIN.views(grad)
                    if entry.layer == layer
                )
                for grad in grads
            ]
            steps = sum(e in used[layer] for used in REACHED)
            wanted = (
                tokens[e] * (sum(squares) / steps) ** 0.5 * bool(local.backward.chosen[layer, e])
            )
            assert float(utility[layer, e]) == pytest.approx(wanted, rel=1e-5)


def test_an_experts_mean_is_over_its_tuners():
    strategy = FLUX()
    state = c.second_state(strategy)
    updates = []
    for update in c.clients(strategy, state, 10)[0]:
        delta = update.delta.copy()
        for name, view in delta.views().items():
            if name.endswith("tuned"):  # all used the second expert; client 2 alone tuned it
                view.copy_(torch.tensor([1.0, float(update.client == 2), 0.0]))
        updates.append(replace(update, delta=delta))
    new, old = strategy.combine(state, updates, 3).views(), state.views()
    for name in ("0.experts.up.A", "1.experts.down.B"):
        moves = [u.delta.views()[name] for u in updates]
        mean = (1 * moves[0][0] + 3 * moves[1][0] + 6 * moves[2][0]) / 10
        torch.testing.assert_close(new[name][0], old[name][0] + mean)
        torch.testing.assert_close(new[name][1], old[name][1] + moves[2][1])
        assert torch.equal(new[name][2], old[name][2])


def test_training_moves_what_has_a_role_alone(tiny_model):
    model = tiny_model(adapter=LoRA(rank=2))
    chance = torch.Generator().manual_seed(4)
    start = Adapter(model.layout, torch.randn(model.layout.size, generator=chance) * 0.1)
    strategy = FLUX(experts={"t": 3})
    task = Task(1, 0, "t", 2, torch.ones(2), start)
    local = strategy.local(task, strategy.layouts(model.layout, 1), start)
    options = Training(steps=3, batch_size=2, weight_decay=0.1)
    update = train_client(model, ROWS, 0, task, options, 1, 0, local)
    tuned = local.backward.chosen & (update.counts > 0)
    assert ((update.counts > 0) & ~tuned).any()
    for entry, view in update.delta.layout.views(update.delta.flat):
        if entry.layer is not None:
            assert torch.equal(view.flatten(1).any(1), tuned[entry.layer]), entry.name
    utility = local.own.flat.view(2, 2, 8)[0]
    assert torch.equal(utility > 0, tuned)

"""FLUX against its formulas: who has a role, what a client measures, whose mean an expert is."""

from dataclasses import replace

import conformance as c
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter
from fedmoe.aggregation.flux import FLUX, roles
from fedmoe.data.text import Tokens
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training

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
    rows = (torch.tensor([x], dtype=torch.float) for x in (utility, measured))
    found = roles(*rows, number, exploit, turn)[0].nonzero().flatten().tolist()
    assert found == sorted(slow_roles(utility, measured, number, exploit, turn))


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
    for grad in grads:
        before = grad.clone()
        local.correct(grad, local.before.flat, c.counts_of(c.ALL))
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
            wanted = tokens[e] * (sum(squares) / 3) ** 0.5 * bool(local.backward.chosen[layer, e])
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

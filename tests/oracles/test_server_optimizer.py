"""Server optimisers against one value at a time, and what must hold for each of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import SERVER_OPTIMIZERS
from fedmoe.aggregation.server_optimizer import (
    Adagrad,
    Adam,
    Momentum,
    NoOptimizer,
    Yogi,
    step_values,
)

LAYOUT = Layout.of([("a.A", (3, 4), 0)], 1, 3, 1, 1.0)
MEMBERS = [m for m in SERVER_OPTIMIZERS.members if m is not NoOptimizer]


def adapter(values):
    return Adapter(LAYOUT, torch.tensor(values, dtype=torch.float32))


def slow(rule, x, deltas):
    """One value through all rounds, with Python's floats."""
    m = momentum = 0.0
    v = getattr(rule, "tau", 0.0) ** 2
    for delta in deltas:
        if delta == 0:
            continue
        if isinstance(rule, Momentum):
            momentum = rule.beta * momentum + delta
            x += rule.learning_rate * momentum
            continue
        m = rule.beta1 * m + (1 - rule.beta1) * delta
        if isinstance(rule, Adagrad):
            v += delta**2
        elif isinstance(rule, Adam):
            v = rule.beta2 * v + (1 - rule.beta2) * delta**2
        else:
            v -= (1 - rule.beta2) * delta**2 * (v > delta**2) - (1 - rule.beta2) * delta**2 * (
                v < delta**2
            )
        x += rule.learning_rate * m / (math.sqrt(v) + rule.tau)
    return x


values = st.lists(st.sampled_from([0.0, 0.5, -0.25, 2.0]), min_size=12, max_size=12)


@settings(max_examples=60)
@given(
    st.sampled_from([Momentum(), Adagrad(beta1=0.5), Adam(), Yogi()]), st.lists(values, max_size=5)
)
def test_many_rounds_match_one_value_at_a_time(rule, rounds):
    x, memory = adapter([1.0] * 12), {}
    for deltas in rounds:
        proposed = Adapter(LAYOUT, x.flat + torch.tensor(deltas))
        true = [(proposed.flat.double() - x.flat.double()).tolist()]
        x, memory = step_values(rule, x, proposed, memory)
        assert true[0] == pytest.approx(deltas, abs=1e-6)
    for i in range(12):
        wanted = slow(rule, 1.0, [deltas[i] for deltas in rounds])
        assert x.flat[i].item() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_what_a_round_did_not_change_keeps_its_bits_and_its_memory(member):
    rule, start = member(), adapter([-0.0, 1.0, 2.0, 3.0] * 3)
    moved, memory = step_values(rule, start, adapter([v + 1 for v in start.flat.tolist()]), {})
    proposed = moved.flat.clone()
    proposed[4:8] += 0.5
    again, after = step_values(rule, moved, Adapter(LAYOUT, proposed), memory)
    still = [i for i in range(12) if not 4 <= i < 8]
    assert torch.equal(again.flat[still].view(torch.int32), moved.flat[still].view(torch.int32))
    assert again.flat[4:8].ne(moved.flat[4:8]).all()
    for name, kept in memory.items():
        assert torch.equal(after[name][still], kept[still])


def test_without_memory_it_is_the_strategy_itself():
    rule = Momentum(beta=0.0)
    start, proposed = adapter([0.5] * 12), adapter([0.75, -1.0, 0.5] * 4)
    assert torch.equal(step_values(rule, start, proposed, {})[0].flat, proposed.flat)


def test_momentum_goes_on_in_the_same_direction():
    x, memory = adapter([0.0] * 12), {}
    steps = []
    for _ in range(3):
        before = x
        x, memory = step_values(Momentum(beta=0.5), x, Adapter(LAYOUT, x.flat + 1), memory)
        steps.append((x.flat - before.flat)[0].item())
    assert steps == [1.0, 1.5, 1.75]

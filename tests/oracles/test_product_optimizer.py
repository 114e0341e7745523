"""Server optimisers on products, against dense matrices."""

import math

import conformance as c
import pytest
import torch

from fedmoe.aggregation import STRATEGIES
from fedmoe.aggregation.fedex_lora import FedExLoRA
from fedmoe.aggregation.flexlora import FlexLoRA
from fedmoe.aggregation.flora import FLoRA
from fedmoe.aggregation.florist import FLoRIST
from fedmoe.aggregation.products import pairs
from fedmoe.aggregation.server_optimizer import Adagrad, Adam, Momentum, Yogi, step_values

RULES = [
    Momentum(beta=0.5, learning_rate=0.7),
    Adagrad(learning_rate=0.3, beta1=0.4),
    Adam(learning_rate=0.2),
    Yogi(learning_rate=0.2),
]


def scaled(rule, v, squared):
    """The new v and the rate of one matrix, with Python's floats."""
    if isinstance(rule, Momentum):
        return 0.0, rule.learning_rate
    if isinstance(rule, Adagrad):
        v += squared
    elif isinstance(rule, Adam):
        v = rule.beta2 * v + (1 - rule.beta2) * squared
    else:
        v -= (1 - rule.beta2) * squared * ((v > squared) - (v < squared))
    return v, rule.learning_rate / (math.sqrt(v) + rule.tau)


class Slow:
    """The rules on dense matrices, one expert's after another."""

    def __init__(self, rule):
        self.rule, self.m, self.v = rule, {}, {}

    def step(self, old, proposed):
        keep = self.rule.beta if isinstance(self.rule, Momentum) else self.rule.beta1
        take = 1.0 if isinstance(self.rule, Momentum) else 1 - keep
        made = {}
        for key in old:
            delta = proposed[key] - old[key]
            m = keep * self.m.get(key, 0.0) + take * delta
            first = 0.0 if isinstance(self.rule, Momentum) else self.rule.tau**2
            v, rate = scaled(self.rule, self.v.get(key, first), delta.square().mean().item())
            self.m[key], self.v[key], made[key] = m, v, old[key] + rate * m
        return made


def dense(state):
    """Every weight's product, one matrix for each expert."""
    views, found = state.views(), {}
    for pair in pairs(state.layout):
        product = views[pair.B].double() @ views[pair.A].double()
        for i, matrix in enumerate(product if product.dim() == 3 else product[None]):
            found[pair.A, i] = matrix
    return found


def rounds(strategy, rule, number=3):
    """States and proposals of some rounds, where the next begins with the step's state."""
    state, memory = c.second_state(strategy), {}
    for seed in range(number):
        proposed = strategy.combine(state, c.clients(strategy, state, seed)[0], 3)
        made, memory = strategy.step(rule, state, proposed, memory)
        yield state, proposed, made
        state = made


@pytest.mark.parametrize("kind", [FlexLoRA, FLoRA, FLoRIST, FedExLoRA])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_steps_are_those_of_dense_matrices(kind, rule):
    slow = Slow(rule)
    for old, proposed, made in rounds(c.made(kind), rule):
        wanted, found = slow.step(dense(old), dense(proposed)), dense(made)
        for key, matrix in wanted.items():
            error = (found[key] - matrix).norm() / matrix.norm()
            assert error < 1e-5, (key, error)


@pytest.mark.parametrize("kind", [FlexLoRA, FLoRA, FLoRIST, FedExLoRA])
def test_what_is_no_product_goes_value_by_value(kind):
    strategy, rule = c.made(kind), Adam()
    old, proposed, made = next(rounds(strategy, rule))
    wanted, _ = step_values(rule, old, proposed, {})
    assert torch.equal(made["0.gate.shift"], wanted["0.gate.shift"])
    assert not torch.equal(made["0.gate.shift"], proposed["0.gate.shift"])


def test_a_state_of_few_components_takes_the_best_of_its_rank():
    strategy, rule = FLoRA(merged_rank=2), Momentum(beta=0.5)
    old, proposed, made = next(rounds(strategy, rule, number=1))
    views = made.views()
    for (name, expert), wanted in Slow(rule).step(dense(old), dense(proposed)).items():
        fresh = dense_of_last(proposed, name, expert, strategy.merged_rank)
        u, values, vh = torch.linalg.svd(wanted - fresh)
        best = u[:, :2] * values[:2] @ vh[:2]
        b, a = views[name[:-1] + "B"][..., :2], views[name][..., :2, :]
        found = (b @ a).double()
        found = found[expert] if found.dim() == 3 else found
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def dense_of_last(state, name, expert, first):
    """The product of a weight's components from `first` on."""
    views = state.views()
    product = (views[name[:-1] + "B"][..., first:] @ views[name][..., first:, :]).double()
    return product[expert] if product.dim() == 3 else product


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_an_expert_that_nobody_used_keeps_its_bits_and_its_memory(kind, rule):
    strategy = c.made(kind)
    state = c.second_state(strategy)
    proposed = strategy.combine(state, c.clients(strategy, state, 3)[0], 3)
    state, memory = strategy.step(rule, state, proposed, {})
    used = (((0,), (1,)),) * 3
    proposed = strategy.combine(state, c.clients(strategy, state, 70, 3, used)[0], 3)
    made, after = strategy.step(rule, state, proposed, memory)
    moved = 0
    for entry, before in state.layout.views(state.flat):
        if entry.layer is not None:
            idle = [1, 2] if entry.layer == 0 else [0, 2]
            part = slice(entry.start, entry.stop)
            assert torch.equal(made[entry.name][idle], before[idle]), entry.name
            for name, kept in memory.items():
                first, then = (x[part].view(entry.shape)[idle] for x in (kept, after[name]))
                assert torch.equal(first, then), (entry.name, name)
            moved += not torch.equal(made[entry.name], before)
    assert moved

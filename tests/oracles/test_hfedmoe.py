"""HFedMoE against its formulas: who learns, what a gradient is then, whose mean an expert is."""

import math
from dataclasses import replace

import conformance as c
import pytest
import torch
from torch.nn import functional as F

from fedmoe.adapter import Adapter
from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.flux import FLUX
from fedmoe.aggregation.hfedmoe import HFedMoE
from fedmoe.aggregation.narrow_backward import NarrowBackward
from fedmoe.data.text import Tokens
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.models.experts import experts_forward
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training

ROWS = [Tokens((*range(2 + n, 9 + 2 * n),), 2) for n in range(4)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(adapter=LoRA(rank=2))


def routing(tokens=9, experts=6, k=2, seed=0):
    """A choice of distinct experts, some of none at all, and weights."""
    g = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=g).argsort(-1)[:, :k]
    index[3] = experts  # padding
    return index, torch.rand(tokens, k, generator=g)


@pytest.mark.parametrize("most", [1, 3, 6])
@pytest.mark.parametrize("surprise", [0.0, 0.4])
def test_the_most_important_of_the_union_learn(most, surprise):
    index, weights = routing()
    ours = NarrowBackward(2, 6, most, 0.3, surprise)
    still = ours.without(1, index, weights)
    importance = {}
    for e in range(6):
        gates = [
            float(w) for row, ws in zip(index, weights, strict=True)
            for i, w in zip(row.tolist(), ws, strict=True) if i == e
        ]  # fmt: skip
        if gates:
            told = sum(g * math.log(g * 6) for g in gates) / 8  # tokens without padding
            importance[e] = 0.3 * sum(gates) / 8 + 0.7 * max(gates) - surprise * told
    learn = sorted(importance, key=lambda e: -importance[e])[:most]
    for row, marks in zip(index.tolist(), still.tolist(), strict=True):
        assert marks == [e < 6 and e not in learn for e in row]
    assert ours.tokens.tolist() == [0, 8]
    for e, s in importance.items():
        assert float(ours.importance[1, e]) == pytest.approx(s)
        assert int(ours.learnt[1, e]) == (e in learn) * int((index == e).sum())
    assert not ours.learnt[0].any()


def test_a_choice_without_gradient_has_its_output_and_no_gradient(model, random_adapter):
    """Against a loop over tokens and slots in which such a slot's term is detached."""
    model.load(random_adapter(model.layout))
    experts, state = model.layers[0].experts, model.states[0]
    a1, b1, a2, b2 = factors = [x.detach().requires_grad_() for x in state.lora[:4]]
    state.lora = state.lora._replace(
        **dict(zip(("gate_up_A", "gate_up_B", "down_A", "down_B"), factors, strict=True))
    )
    g = torch.Generator().manual_seed(2)
    x = torch.randn(7, 32, generator=g, requires_grad=True)
    index = torch.rand(7, 8, generator=g).argsort(-1)[:, :3]
    weights = torch.rand(7, 3, generator=g, requires_grad=True)
    still = index >= 5
    terms = []
    for t in range(7):
        for j, e in enumerate(index[t].tolist()):
            up = (experts.gate_up_proj[e] + state.lora.scale * b1[e] @ a1[e]) @ x[t]
            h = F.silu(up[: len(up) // 2]) * up[len(up) // 2 :]
            y = weights[t, j] * ((experts.down_proj[e] + state.lora.scale * b2[e] @ a2[e]) @ h)
            terms.append(y.detach() if still[t, j] else y)
    wanted = torch.stack(terms).view(7, 3, -1).sum(1)
    state.without = lambda *_: still
    try:
        found = experts_forward(experts, x, index, weights)
    finally:
        state.without = None
        model.bind(model.layout)
    torch.testing.assert_close(found, wanted)
    leaves = [x, weights, *factors]
    into = torch.randn(found.shape, generator=g)
    ours, theirs = (torch.autograd.grad((out * into).sum(), leaves) for out in (found, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert not ours[1][still].any()
    assert not any(grad[5:].any() for grad in ours[2:])


def trained(model, strategy, **settings_):
    layout = model.layout
    task = Task(1, 0, "t", 2, torch.ones(2), model_start(model))
    local = strategy.local(task, strategy.layouts(layout, 1), task.adapter)
    settings_ = Training(**({"steps": 3, "batch_size": 2} | settings_))
    return train_client(model, ROWS, 0, task, settings_, 1, 0, local), local


def model_start(model):
    chance = torch.Generator().manual_seed(4)
    return Adapter(model.layout, torch.randn(model.layout.size, generator=chance) * 0.1)


def test_a_client_trains_and_reports_the_chosen_alone_and_with_room_for_all_it_is_fedavg(model):
    few, local = trained(model, HFedMoE(per_choice=1), weight_decay=0.1)
    used, learnt = few.counts > 0, local.backward.learnt > 0
    assert (used & ~learnt).any()  # usage is not update
    for entry, view in few.delta.layout.views(few.delta.flat):
        if entry.layer is not None:
            moved = view.flatten(1).any(1)
            assert torch.equal(moved, learnt[entry.layer]), entry.name
    record = torch.stack([v for n, v in few.delta.views().items() if n.endswith("record")])
    assert torch.equal(record[:, 2] > 0, learnt)
    # OLMoE's weights of a token are not renormalised: their mean over tokens is below 1.
    assert (record[:, 0].sum(1) < 1).all()
    assert (record[:, 0][used] > 0).all()
    whole, _ = trained(model, HFedMoE(experts={"t": 8}))
    plain, _ = trained(model, FedAvg())
    assert torch.equal(whole.delta.flat[: model.layout.size], plain.delta.flat)


def test_an_experts_mean_is_over_its_learners_and_routers_follow_alpha():
    strategy = HFedMoE(threshold=0.05)
    state = c.second_state(strategy)
    updates = []
    for update in c.clients(strategy, state, 10)[0]:
        delta = update.delta.copy()
        for name, view in delta.views().items():
            if name.endswith("record"):
                chance = torch.Generator().manual_seed(update.client + len(name))
                view[:2] = torch.rand(2, 3, generator=chance)
                view[0, 0] = 0.04 if update.client == 1 else 0.5  # client 1: under tau
                view[2] = torch.tensor([1.0, float(update.client != 0), 0.0])
        updates.append(replace(update, delta=delta))
    new, old = strategy.combine(state, updates, 3).views(), state.views()
    alphas = []
    for u in updates:
        views, parts = u.delta.views(), []
        for layer in range(c.LAYERS):
            used, s, trained_ = views[f"{layer}.experts.record"]
            parts += [float(used[e] * s[e]) for e in range(3) if trained_[e] and used[e] >= 0.05]
        alphas.append(sum(parts) / len(parts))
    for name in old:
        for e in range(3) if name[0].isdigit() and "experts" in name else [...]:
            weights = []
            for u, alpha in zip(updates, alphas, strict=True):
                n = u.examples
                if name.endswith("shift"):
                    n = alpha
                elif "experts" in name:
                    record = u.delta.views()[f"{name[0]}.experts.record"]
                    n *= bool(record[2, e]) and bool(record[0, e] >= 0.05)
                weights.append(n)
            if not sum(weights):
                assert torch.equal(new[name][e], old[name][e])
                assert e == 2
                continue
            moves = [u.delta.views()[name][e].double() for u in updates]
            mean = sum(w * m for w, m in zip(weights, moves, strict=True)) / sum(weights)
            torch.testing.assert_close(new[name][e], (old[name][e] + mean).float())


@pytest.mark.parametrize("kind", [HFedMoE, FLUX])
def test_routers_follow_the_clients_whose_routing_agrees_with_the_mean(kind):
    strategy = kind(router_agreement=True)
    state = c.second_state(strategy)
    used = (((0,), c.ALL[1]), ((0, 1), (1, 2)), ((0, 0, 1), (1,)))
    updates = c.clients(strategy, state, 10, used=used)[0]
    found = strategy.combine(state, updates, 3).views()
    plain = kind().combine(state, updates, 3).views()
    told = [[int(n) / c.TOKENS for n in update.counts[0]] for update in updates]
    name = "0.gate.shift"
    for e in range(c.EXPERTS):
        mean = sum(f[e] for f in told) / 3
        s = [min(f[e], mean) / max(f[e], mean) if mean else 0.0 for f in told]
        wanted = state.views()[name][e].clone()
        for update, one in zip(updates, s, strict=True):
            if mean:
                wanted += one / sum(s) * update.delta.views()[name][e]
        torch.testing.assert_close(found[name][e], wanted)
    assert not sum(f[2] for f in told)  # so that a row that nobody chose is among them
    assert all(torch.equal(plain[n], found[n]) for n in plain if n != name)

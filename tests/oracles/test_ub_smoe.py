"""UB-SMoE against its formulas, one expert and one token at a time."""

import math
from dataclasses import replace

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter, cut
from fedmoe.aggregation import STRATEGIES
from fedmoe.aggregation.strategy import Layouts
from fedmoe.aggregation.ub_smoe import UBSMoE, with_phi
from fedmoe.data.text import Tokens, collate
from fedmoe.errors import ModelError
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.models.modulation import modulate
from fedmoe.training.client import train_client
from fedmoe.training.loss import response_loss
from fedmoe.training.settings import Training

KIND = {kind().name: kind for kind in STRATEGIES}
ROWS = [Tokens((*range(2 + n, 8 + 2 * n),), 2) for n in range(3)]
BATCH = collate(ROWS, 0)


@pytest.fixture(scope="module")
def phi_model(tiny_model):
    """A tiny model, and a layout with a modulation of its routers."""
    model = tiny_model(adapter=LoRA(rank=2))
    return model, with_phi(model.layout)


def test_ub_smoe_averages_phi_pulls_it_towards_idle_experts_and_the_rest_is_a3smoe():
    nudged, plain = KIND["ub_smoe"](momentum=0.5), KIND["a3smoe"]()
    state = nudged.first_state(c.INITIAL)
    used = (((0, 0, 1), (0, 1, 2)),) * 3
    updates = c.clients(nudged, state, 10, used=used)[0]
    new = nudged.combine(state, updates, 3)
    use = [4 / 6, 2 / 6, 0.0]
    for e in range(c.EXPERTS):
        mean = sum(u.examples * float(u.delta.views()["0.experts.phi"][e]) for u in updates) / 10
        wanted = 0.5 * mean + 0.5 * math.tanh((1 / 3) / (use[e] + 1e-6) - 1)
        assert float(new.views()["0.experts.phi"][e]) == pytest.approx(wanted, abs=1e-6)
    bare = [replace(u, delta=cut(u.delta, c.PLAIN)) for u in updates]
    flat = plain.combine(c.INITIAL, bare, 3).flat
    assert torch.equal(new.flat[: c.PLAIN.size], flat)


def test_ub_smoe_gives_idle_experts_the_busy_ones_gradient_by_the_routers_softmax():
    strategy = KIND["ub_smoe"](pseudo_gradient=0.4, penalty=0.0)
    _, local = c.start_of(strategy, strategy.first_state(c.INITIAL), top_k=2)
    layout = local.layouts.trained
    local.mass = torch.zeros(c.LAYERS, c.EXPERTS)
    chance = torch.Generator().manual_seed(1)
    for shares in ([5.0, 1.0, 9.0], [3.0, 1.0, 2.0]):  # a step's, whatever came before
        grad = Adapter(layout, torch.randn(layout.size, generator=chance))
        before = grad.copy().views()
        local.mass[:] += torch.tensor(shares)
        local.correct(grad.flat, local.before.flat, c.counts_of(((0, 0, 1), (0, 1, 2))))
        for name, view in grad.views().items():
            wanted = before[name].clone()
            if name.startswith("0.experts") and not name.endswith("phi"):
                busy = sum(shares[e] * before[name][e] for e in (0, 1)) / sum(shares[:2])
                wanted[2] = 0.4 * 3 / 2 * busy
            torch.testing.assert_close(view, wanted)


def test_ub_smoe_holds_phi_within_its_bounds_by_the_gradient_of_its_penalty():
    strategy = KIND["ub_smoe"](penalty=0.3, least=-0.5, most=0.2)
    _, local = c.start_of(strategy, strategy.first_state(c.INITIAL))
    theta = torch.randn(local.before.flat.shape, generator=torch.Generator().manual_seed(3))
    theta.requires_grad_()
    local.mass = torch.ones(c.LAYERS, c.EXPERTS)
    grad = torch.zeros_like(theta)
    local.correct(grad, theta.detach(), c.counts_of(c.ALL))
    phi = Adapter(local.layouts.trained, theta).views()["1.experts.phi"]
    loss = 0.3 * ((-0.5 - phi).relu().square().sum() + (phi - 0.2).relu().square().sum())
    (wanted,) = torch.autograd.grad(loss, theta)
    assert wanted.any()
    name = "1.experts.phi"
    found, wanted = (Adapter(local.layouts.trained, x).views()[name] for x in (grad, wanted))
    torch.testing.assert_close(found, wanted)


def test_phi_gets_the_gradient_of_the_loss(phi_model):
    """Against differences of the loss, with choices that a small step leaves alone."""
    model, layout = phi_model
    model.load(Adapter(layout, torch.zeros(layout.size)))
    model.set_budget(2)
    model.grad.zero_()
    response_loss(model, BATCH).backward()
    name = f"{model.layers[0].path}.phi"
    phi, grad = (Adapter(layout, flat).views()[name] for flat in (model.flat, model.grad))
    assert (grad.abs() > 1e-3).sum() >= 2
    for e in range(8):
        ends = []
        for step in (1e-3, -1e-3):
            phi[e] = step
            ends.append(float(response_loss(model, BATCH).detach().double()))
        phi[e] = 0.0
        assert float(grad[e]) == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=2e-2)


def test_training_moves_phi_and_records_each_real_token_s_softmax(phi_model):
    model, layout = phi_model
    strategy = UBSMoE()
    task = Task(1, 0, "t", 1, torch.ones(2), Adapter(layout, torch.zeros(layout.size)))
    local = strategy.local(task, Layouts.all(layout), task.adapter)
    update = train_client(model, ROWS, 0, task, Training(steps=2, batch_size=2), 1, 0, local)
    assert all(update.delta.views()[f"{layer.path}.phi"].any() for layer in model.layers)
    wanted = torch.full((2,), float(update.tokens))
    torch.testing.assert_close(local.mass.sum(1), wanted)  # a token's softmax sums to 1
    assert model.modulations[0].mass is None


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen3_moe"])
def test_modulation_at_zero_is_the_router_and_a_bonus_draws_tokens(tiny_base, family):
    model = tiny_base(family)
    router = model.model.layers[0].mlp.gate
    router.top_k = 2
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    plain = router(hidden)
    modulation = modulate(router, family, 4)
    assert all(torch.equal(a, b) for a, b in zip(router(hidden), plain, strict=True))
    modulation.phi = torch.zeros(8)
    for ours, theirs in zip(router(hidden), plain, strict=True):
        assert torch.equal(ours, theirs)
    share = [(router(hidden)[2] == 5).sum()]
    for bonus in (1.0, 50.0):
        modulation.phi = torch.zeros(8).index_fill(0, torch.tensor([5]), bonus)
        _, weights, index = router(hidden)
        share.append((index == 5).sum())
        if family == "mixtral":
            torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    assert share[0] <= share[1] <= share[2]
    assert share[0] < share[2] <= 50


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_modulation_changes_a_tokens_best_and_chooses_among_all(tiny_base, top_k):
    """Token by token: a bonus lifts no outsider, a malus lets one in."""
    router = tiny_base().model.layers[0].mlp.gate
    router.top_k = top_k
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    affinities = router(hidden)[0]
    phi = torch.tensor([-3.0, -3.0, -3.0, -3.0, -3.0, 0.5, 0.0, 2.0])
    modulation = modulate(router, "olmoe", 2)
    modulation.phi, modulation.mass = phi, torch.zeros(8)
    _, weights, index = router(hidden)
    total, outsiders = torch.zeros(8), 0
    for token, s in enumerate(affinities):
        best = sorted(range(8), key=lambda i: -s[i])[:4]
        m = torch.stack([s[i] + phi[i] if i in best else s[i] for i in range(8)])
        p = torch.softmax(m, 0)
        chosen = sorted(range(8), key=lambda i: -p[i])[:top_k]
        assert index[token].tolist() == chosen
        torch.testing.assert_close(weights[token], p[chosen])
        total += p
        outsiders += len({*chosen} - {*best})
    assert outsiders or top_k == 1
    torch.testing.assert_close(modulation.mass, total)


def test_a_router_whose_rule_is_not_known_is_refused(tiny_base):
    with pytest.raises(ModelError, match=r"those of 'deepseek_v3' models do not .*expected one"):
        modulate(tiny_base().model.layers[0].mlp.gate, "deepseek_v3", 4)

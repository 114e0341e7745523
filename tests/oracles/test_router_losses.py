"""Losses on routing against slow loops, and what they do to a router that is trained with them."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from fedmoe.adapter import Adapter
from fedmoe.config import Experiment
from fedmoe.data.text import Tokens
from fedmoe.messages.records import Task
from fedmoe.models import experts
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.gating import CompetitionGating, NoisyTopKGating, Routed, TopKGating
from fedmoe.models.gating.competition import distillation
from fedmoe.models.gating.rule import Choice
from fedmoe.models.rescaling import NoRescaling, StaticRescaling
from fedmoe.training import router_losses as losses
from fedmoe.training.client import train_client
from fedmoe.training.router_losses import RouterLosses, router_training
from fedmoe.training.settings import Training
from fedmoe.training.similarity import co_activated, linear_cka, mean_pairwise_cka

T, E, K = 7, 5, 2
PHI = torch.distributions.Normal(0.0, 1.0).cdf


def drawn(seed=0):
    """A layer's routing of T tokens, one slot of which is empty."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randn(T, E, generator=g)
    spread = torch.rand(T, E, generator=g) + 0.1
    noisy = clean + torch.randn(T, E, generator=g) * spread
    index = noisy.topk(K, dim=-1).indices
    weights = torch.softmax(noisy, -1).gather(-1, index)
    choice = Choice(noisy, index, clean=clean, spread=spread)
    return Routed(torch.randn(T, 3, generator=g), noisy, weights, index, choice)


def variation(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def slow_load_balance(r):
    rows = r.index.flatten().tolist()
    probabilities = torch.softmax(r.logits, -1)
    total = 0.0
    for e in range(E):
        p = sum(float(probabilities[t, e]) for t in range(T)) / T
        total += rows.count(e) / sum(e < E for e in rows) * p
    return E * total


def slow_importance(r):
    sums = [0.0] * E
    for t in range(T):
        for slot, e in enumerate(r.index[t].tolist()):
            if e < E:
                sums[e] += float(r.weights[t, slot])
    return variation(sums)


def slow_load(r):
    sums = []
    for e in range(E):
        total = 0.0
        for t in range(T):
            others = sorted((float(r.logits[t, i]) for i in range(E) if i != e), reverse=True)
            gap = float(r.choice.clean[t, e]) - others[K - 1]
            total += float(PHI(torch.tensor(gap / float(r.choice.spread[t, e]))))
        sums.append(total)
    return variation(sums)


def slow_z(r):
    sums = [sum(math.exp(x) for x in row) for row in r.choice.clean.tolist()]
    return sum(math.log(s) ** 2 for s in sums) / T


@pytest.mark.parametrize("name", ["load_balance", "importance", "load", "z"])
def test_a_loss_matches_the_slow_formula(name):
    for seed in range(5):
        slow = globals()[f"slow_{name}"]
        assert float(getattr(losses, name)(drawn(seed))) == pytest.approx(
            slow(drawn(seed)), rel=1e-5
        )


def test_empty_slots_count_for_no_expert():
    full = drawn()
    index = full.index.clone()
    index[0, 1], index[3, 0] = E, E
    weights = full.weights.masked_fill(index == E, 0.0)
    holed = Routed(full.hidden, full.logits, weights, index, full.choice)
    assert float(losses.load_balance(holed)) == pytest.approx(slow_load_balance(holed), rel=1e-5)
    assert float(losses.importance(holed)) == pytest.approx(slow_importance(holed), rel=1e-5)


def test_even_routing_has_the_least_balance_loss_and_no_variation():
    index = torch.tensor([[e, (e + 1) % E] for e in range(E)])
    even = Routed(torch.zeros(E, 3), torch.zeros(E, E), torch.full((E, 2), 0.2), index)
    assert float(losses.load_balance(even)) == pytest.approx(1.0)
    assert float(losses.importance(even)) == pytest.approx(0.0, abs=1e-9)


def test_alignment_is_the_mean_divergence_from_the_anchor():
    r = drawn()
    weight = torch.randn(E, 3, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for t in range(T):
        p = torch.softmax(weight @ r.hidden[t], 0)
        q = torch.softmax(r.choice.clean[t], 0)
        total += sum(float(p[e]) * math.log(float(p[e]) / float(q[e])) for e in range(E))
    assert float(losses.alignment(r, (weight, None))) == pytest.approx(total / T, rel=1e-5)
    own = Routed(r.hidden, r.hidden @ weight.T, r.weights, r.index)
    assert float(losses.alignment(own, (weight, None))) == pytest.approx(0.0, abs=1e-6)


def test_distillation_weighs_winners_extra():
    r = drawn()
    responses = torch.rand(T, E, generator=torch.Generator().manual_seed(4)) * 3
    index = responses.topk(K).indices
    routed = Routed(
        r.hidden, r.logits, r.weights, index, Choice(r.logits, index, None, None, responses)
    )
    total = 0.0
    for t in range(T):
        gap = (torch.softmax(r.logits[t], 0) - responses[t] / responses[t].sum()) ** 2
        total += float(gap.sum()) / E + 0.5 * sum(float(gap[e]) for e in index[t].tolist()) / K
    assert float(distillation(routed, 0.5)) == pytest.approx(total / T, rel=1e-5)
    assert float(distillation(r, 0.5)) == 0


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_a_router_that_has_learnt_the_competition_chooses_its_winners(size):
    """However large the answers are: of a softmax of large ones all but one are zeros."""
    responses = size * torch.tensor([[1.0, 3.0, 1.0, 4.0, 5.0, 1.0, 1.0, 6.0, *[1.0] * 8]])
    index, logits = responses.topk(4).indices, torch.zeros(1, 16, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(500):
        choice = Choice(logits, index, None, None, responses)
        routed = Routed(torch.zeros(1, 3), logits, torch.ones(1, 4), index, choice)
        optimizer.zero_grad()
        distillation(routed, 1.0).backward()
        optimizer.step()
    assert torch.equal(logits.topk(4).indices, index)


def test_linear_cka_is_the_alignment_of_centred_kernels():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, w, generator=g, dtype=torch.float64) for w in (4, 3))
    centre = torch.eye(12, dtype=torch.float64) - 1 / 12
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
    assert float(linear_cka(x, y)) == pytest.approx(float(expected))
    turned = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    assert float(linear_cka(x, 2.5 * x @ turned + 3.0)) == pytest.approx(1.0)
    assert float(linear_cka(x, torch.ones_like(y))) == 0.0


def test_pairs_are_those_that_share_the_most_tokens():
    index = torch.tensor([[0, 1], [0, 1], [1, 2], [2, 4], [3, 4], [0, 1]])  # 4: none
    assert co_activated(index, 4, 5) == [(0, 1, 3), (1, 2, 1)]
    assert co_activated(index, 4, 1) == [(0, 1, 3)]


@pytest.fixture(scope="module")
def model_with(tiny_base, random_adapter):
    made = {}

    def make(gating=None):
        if str(gating) not in made:
            experts.register()
            base = tiny_base("olmoe")
            base.set_experts_implementation(experts.IMPLEMENTATION)
            adapter = LoRA(rank=2, router=True)
            rule = gating or TopKGating()
            made[str(gating)] = AdaptedModel(base, adapter, NoRescaling(), rule)
        model = made[str(gating)]
        model.load(random_adapter(model.layout))
        return model

    return make


IDS, VALID = torch.arange(2, 34).view(2, 16), torch.arange(16) < torch.tensor([[16], [9]])
ROWS = [
    Tokens(tuple(np.random.default_rng(i).integers(2, 60, n).tolist()), 2)
    for i, n in enumerate((9, 14, 12, 10, 16, 11))
]


def measured(model, weights, seed=0):
    """The loss on routing of one forward pass in training."""
    model.set_budget(2)
    g = torch.Generator().manual_seed(seed)
    with router_training(model.gates, weights, g) as routers:
        routers.begin(0.0)
        model.hidden(IDS, VALID)
        return routers.loss(VALID), list(routers.seen)


def test_the_sum_is_weighted_averaged_over_layers_and_blind_to_padding(model_with):
    model = model_with(NoisyTopKGating())
    weights = RouterLosses(load_balance=0.5, importance=2.0, load=3.0, z=0.1)
    total, seen = measured(model, weights)
    expected = 0.0
    for name in ("load_balance", "importance", "load", "z"):
        each = [getattr(losses, name)(s.only(VALID.flatten())) for s in seen]
        expected = expected + getattr(weights, name) * sum(each) / len(each)
    torch.testing.assert_close(total, expected)
    assert measured(model_with(), RouterLosses())[0] is None


def test_similarity_is_the_cka_of_answers_to_shared_tokens_and_reaches_the_experts(model_with):
    model = model_with()
    weights = RouterLosses(similarity=1.0, similarity_pairs=3, similarity_tokens=4)
    total, seen = measured(model, weights)
    layers = []
    for layer, state, s in zip(model.layers, model.states, seen, strict=True):
        s, found = s.only(VALID.flatten()), []
        for a, b, shared in co_activated(s.index, 8, 3):
            if shared >= 4:
                rows = [t for t, row in enumerate(s.index.tolist()) if a in row and b in row]
                answers = [answer(layer, state, s.hidden[rows], e) for e in (a, b)]
                found.append(linear_cka(*answers))
        layers.append(sum(found) / len(found) if found else torch.tensor(0.0))
    assert any(float(x.detach()) for x in layers)
    torch.testing.assert_close(total, sum(layers) / len(layers))
    total.backward()
    moved = {e.name for e, g in model.layout.views(model.grad) if g.ne(0).any()}
    model.grad.zero_()
    assert any(name.endswith("down_proj.B") for name in moved)
    none = measured(model, RouterLosses(similarity=1.0, similarity_tokens=999))[0]
    assert float(none.detach()) == 0.0


def answer(layer, state, hidden, e):
    """One expert with its LoRA, by the formula."""
    a1, b1, a2, b2, scale = state.lora
    gate, up = (hidden @ (layer.experts.gate_up_proj[e] + scale * b1[e] @ a1[e]).T).chunk(2, -1)
    inner = layer.experts.act_fn(gate) * up
    return inner @ (layer.experts.down_proj[e] + scale * b2[e] @ a2[e]).T


def test_mean_pairwise_cka_is_over_all_pairs(model_with):
    model = model_with()
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    layer, state = model.layers[0], model.states[0]
    with torch.no_grad():
        answers = [answer(layer, state, hidden, e).double() for e in range(8)]
    pairs = [float(linear_cka(a, b)) for a, b in combinations(answers, 2)]
    assert mean_pairwise_cka(layer.experts, hidden) == pytest.approx(sum(pairs) / 28, rel=1e-4)


def trained(model, weights, steps=12):
    start = Adapter(model.layout, model.read().flat.clone())
    settings = Training(
        steps=steps, batch_size=6, probe_examples=1, learning_rate=1e-2, warmup_steps=0
    )
    task = Task(1, 0, "t", 2, torch.ones(2), start)
    update = train_client(model, ROWS, 0, task, settings, 1, 0, None, weights)
    model.load(start + update.delta)
    moved = {e.name: float(v.norm()) for e, v in model.layout.views(update.delta.flat)}
    return update, sum(norm for name, norm in moved.items() if name.endswith("gate.shift"))


@pytest.mark.parametrize("name", ["load_balance", "importance", "z", "similarity"])
def test_training_with_a_loss_lowers_it(model_with, name):
    weights = RouterLosses(**{name: 1.0, "similarity_tokens": 4})
    after = {}
    for label, given in (("with", weights), ("without", RouterLosses())):
        model = model_with()
        trained(model, given)
        with torch.no_grad():
            after[label] = float(measured(model, weights)[0])
    # Loads have no gradient, and these routers are decided: balance is slow to move.
    bar = 0.995 if name == "load_balance" else 0.97
    assert after["with"] < bar * after["without"], after


def test_alignment_holds_the_router_near(model_with):
    _, free = trained(model_with(), RouterLosses())
    _, held = trained(model_with(), RouterLosses(alignment=100.0))
    assert held < 0.8 * free


def test_a_router_that_distils_foresees_the_competition(model_with):
    found = []
    for distil in (0.0, 50.0):
        gating = CompetitionGating(first=1.0, last=1.0, distil=distil)
        model = model_with(gating)
        trained(model, RouterLosses())
        with torch.no_grad():
            routed = measured(model, RouterLosses(z=1.0))[1]
        rows = VALID.flatten()
        found.append(sum(float(distillation(s.only(rows), 1.0)) for s in routed))
    assert found[1] < 0.9 * found[0]


def test_losses_of_weight_zero_change_no_bit(model_with):
    plain, _ = trained(model_with(), losses.NO_LOSSES, steps=2)
    zero, _ = trained(model_with(), RouterLosses(similarity_pairs=5), steps=2)
    some, _ = trained(model_with(), RouterLosses(z=0.1), steps=2)
    assert plain.delta.digest() == zero.delta.digest() != some.delta.digest()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"losses": RouterLosses(load=0.1)}, "losses.load: .*use 'noisy_top_k'"),
        ({"losses": RouterLosses(alignment=0.1)}, "losses.alignment: .*set adapter.router"),
        ({"gating": CompetitionGating()}, "gating.name: 'competition' teaches routers"),
        (
            {"gating": NoisyTopKGating(), "rescaling": StaticRescaling(by="mass")},
            "rescaling.by: 'mass' and gating.name 'noisy_top_k'",
        ),
    ],
)
def test_settings_that_cannot_be_honoured_together_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Experiment(**settings)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 1e-6])
@pytest.mark.parametrize("kind", ["the same token", "a constant answer"])
def test_answers_that_do_not_vary_give_no_gradient_and_no_nan(kind, scale):
    generator = torch.Generator().manual_seed(0)
    row, moving = (torch.randn(n, 8, generator=generator) * scale for n in (1, 16))
    still = (row.repeat(16, 1) + row * 1e-7).requires_grad_()
    other = moving.requires_grad_() if kind == "a constant answer" else still.detach().clone()
    value = linear_cka(other.requires_grad_(), still)
    value.backward()
    assert value == 0
    for x in (still, other):
        assert x.grad is not None
        assert x.grad.eq(0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_size_of_answers_does_not_count(scale):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(16, 8, generator=generator) for _ in range(2))
    torch.testing.assert_close(linear_cka(x * scale, y), linear_cka(x, y))

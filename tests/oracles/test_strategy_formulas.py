"""Strategies against their formulas, one client and component at a time, and at their edges."""

from dataclasses import replace

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter, resized
from fedmoe.aggregation import STRATEGIES
from fedmoe.aggregation.hetlora import product_norm
from fedmoe.aggregation.server_optimizer import Adam
from fedmoe.messages.codec import pack_task
from fedmoe.rounds import ServerState, finish_round

KIND = {kind().name: kind for kind in STRATEGIES}
USED = (c.ALL, ((0,), (1, 2)), ((1,), (0, 1)))


def mixed_round(strategy, state, ranks=(4, 2, 3, 4, 1), sizes=(2, 1, 5, 3, 4)):
    """Updates of clients of several ranks, and their factors at the state's scale."""
    updates, factors = [], []
    for number, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
        task, local = c.start_of(strategy, state, client=number, rank=rank)
        after = c.trained_by(local, 300 + number)
        updates.append(c.update_of(task, local, after, examples=size))
        factors.append(resized(after, c.PLAIN).views())
    return updates, factors, ranks, sizes


def component(view, name, i):
    """Rank component i of a factor, for all experts; the tensor itself where it has none."""
    if name.endswith(".shift"):
        return view
    return view[..., i, :] if name.endswith(".A") else view[..., i]


def check_components(new, formula):
    """Every component of the new state against `formula(name, i)`."""
    for name, view in new.views().items():
        for i in range(1 if name.endswith("shift") else c.RANK):
            torch.testing.assert_close(
                component(view, name, i), formula(name, i).float(), rtol=1e-5, atol=1e-6
            )


def test_raflora_averages_a_component_over_the_clients_that_hold_it():
    strategy = KIND["raflora"]()
    updates, factors, ranks, sizes = mixed_round(strategy, c.INITIAL)

    def formula(name, i):
        held = [
            (n, component(f[name], name, i))
            for f, r, n in zip(factors, ranks, sizes, strict=True)
            if r > i or name.endswith("shift")
        ]
        return sum(n * part.double() for n, part in held) / sum(n for n, _ in held)

    check_components(strategy.combine(c.INITIAL, updates, 5), formula)


def test_replication_pads_with_the_mean_of_the_highest_rank():
    strategy = KIND["replication"]()
    updates, factors, ranks, sizes = mixed_round(strategy, c.INITIAL)
    best = [(n, f) for f, r, n in zip(factors, ranks, sizes, strict=True) if r == c.RANK]

    def formula(name, i):
        padding = sum(n * component(f[name], name, i).double() for n, f in best) / sum(
            n for n, _ in best
        )
        total = sum(
            n
            * (component(f[name], name, i).double() if r > i or name.endswith("shift") else padding)
            for f, r, n in zip(factors, ranks, sizes, strict=True)
        )
        return total / sum(sizes)

    check_components(strategy.combine(c.INITIAL, updates, 5), formula)


def test_hetlora_pads_with_zeros_and_weighs_by_the_norm_of_the_product():
    strategy = KIND["hetlora"](decay=1.0)
    updates, factors, ranks, _ = mixed_round(strategy, c.INITIAL)
    norms = []
    for update, rank in zip(updates, ranks, strict=True):
        plain = c.PLAIN.with_rank(rank)
        after = resized(c.INITIAL, plain) + update.delta
        products = [v for n, v in c.dense(after).items() if not n.endswith("shift")]
        norms.append(sum(float((p**2).sum()) for p in products) ** 0.5)
        assert product_norm(after) == pytest.approx(norms[-1], rel=1e-6)

    def formula(name, i):
        total = sum(
            w * component(f[name], name, i).double() for f, w in zip(factors, norms, strict=True)
        )
        return total / sum(norms)

    check_components(strategy.combine(c.INITIAL, updates, 5), formula)


@pytest.mark.parametrize("kills", [False, True])
def test_hetlora_keeps_the_row_of_a_that_no_client_of_an_expert_holds(kills):
    """Ranks 2, 3 and 2 of 4, and an expert that a client of rank 2 alone used."""
    strategy = KIND["hetlora"](kills=kills)
    state = c.second_state(KIND["hetlora"]())
    used = (((0, 1), (0, 1)), ((0,), (0,)), ((0,), (0,)))
    updates = c.clients(strategy, state, 10, used=used, ranks=(2, 3, 2))[0]
    new, old = strategy.combine(state, updates, 3).views(), state.views()
    for e, held in ((0, 3), (1, 2), (2, 4)):  # nobody used the last: it keeps all
        a, b = new["0.experts.up.A"][e], new["0.experts.up.B"][e]
        assert a[:held].any(-1).all()
        assert b[:, :held].any(0).all()
        assert torch.allclose(b[:, held:], torch.zeros(()), atol=1e-12)
        kept = torch.zeros(()) if kills else old["0.experts.up.A"][e, held:]
        assert torch.allclose(a[held:], kept, rtol=0, atol=1e-12)


def test_hetlora_gives_no_weight_to_a_client_whose_product_is_zero():
    strategy = KIND["hetlora"]()
    state = c.second_state(strategy)
    updates = c.clients(strategy, state, 60)[0]
    empty = replace(updates[0], delta=Adapter(c.PLAIN, -state.flat))
    pair = [strategy.combine(state, us, 3) for us in ([empty, *updates[1:]], updates[1:])]
    c.close(*(c.served(strategy, new) for new in pair))


def test_hetlora_drops_a_tail_that_shrank_and_its_server_sees_zeros():
    strategy = KIND["hetlora"](decay=0.5)
    state = c.second_state(strategy)
    task, local = c.start_of(strategy, state)
    shrunk = local.before.copy()
    for name, view in shrunk.views().items():
        if name.endswith(".B"):
            view[..., 2:] *= 0.5
    local.finish(shrunk, c.counts_of(c.ALL))
    assert local.own.flat.item() == 2
    layouts = c.layouts_of(strategy, 2)
    again = strategy.local(replace(task, round=2), layouts, c.INITIAL, local.own)
    for name, view in again.start.views().items():
        if name.endswith((".A", ".B")):
            dropped = view[..., 2:, :] if name.endswith(".A") else view[..., 2:]
            assert not dropped.any()
    sent = again.finish(again.before, c.counts_of(c.ALL))
    assert torch.equal((task.adapter + sent).flat, again.before.flat)
    local.finish(local.before, c.counts_of(c.ALL))
    assert local.own.flat.item() == 4  # nothing shrank


def test_fedprox_pulls_towards_the_start_and_at_mu_0_is_fedavg():
    near = KIND["fedprox"](mu=0.5)
    _, local = c.start_of(near, c.second_state(near))
    theta = local.before.flat + 2
    grad = torch.zeros_like(theta)
    local.correct(grad, theta, c.counts_of(c.ALL))
    torch.testing.assert_close(grad, torch.ones_like(grad))
    _, free = c.start_of(KIND["fedprox"](mu=0.0), c.INITIAL)
    free.correct(grad, theta, c.counts_of(c.ALL))
    torch.testing.assert_close(grad, torch.ones_like(grad))


def test_scaffold_keeps_the_mean_gradient_and_corrects_by_the_difference():
    strategy = KIND["scaffold"](most_gradient=1e6)
    state = strategy.first_state(c.INITIAL)
    noise = torch.Generator().manual_seed(0)
    grads = [torch.randn(c.PLAIN.size, generator=noise) for _ in range(3)]
    task, local = c.start_of(strategy, state)
    used, counts = ((0, 1), (0, 1, 2)), None
    for grad in grads:
        counts = c.counts_of(used)
        changed = grad.clone()
        local.correct(changed, local.before.flat, counts)
        assert torch.equal(changed, grad)  # both controls are zero in round 1
    local.finish(local.before, c.counts_of(used))
    mean = Adapter(c.PLAIN, sum(grads) / 3)
    for entry, view in c.PLAIN.views(local.own.flat):
        wanted = mean.views()[entry.name].clone()
        if entry.layer == 0:
            wanted[2] = 0  # idle: its control stays
        torch.testing.assert_close(view, wanted)
    update = c.update_of(task, local, local.before, used)
    new = strategy.combine(state, [update], num_clients=4)
    torch.testing.assert_close(new.flat[c.PLAIN.size :], update.delta.flat[c.PLAIN.size :] / 4)
    following = strategy.send(new, c.PLAIN)
    again = strategy.local(
        replace(task, round=2, adapter=following), c.layouts_of(strategy, 2), c.INITIAL, local.own
    )
    grad = torch.zeros(c.PLAIN.size)
    again.correct(grad, again.before.flat, counts)
    torch.testing.assert_close(grad, new.flat[c.PLAIN.size :] - local.own.flat)


def test_lora_fair_is_nearer_to_the_mean_product_than_the_means_and_follows_its_regularisation():
    state = c.second_state(KIND["fedavg"]())

    def distance(strategy):
        updates, ends = c.clients(strategy, state, 10, used=USED)
        found = c.served(strategy, strategy.combine(state, updates, 3))
        off = 0.0
        for name in found:
            mean = sum(n * end[name] for n, end in zip((1, 3, 6), ends, strict=True)) / 10
            off += float(((found[name] - mean) ** 2).sum())
        return off

    fair = [distance(KIND["lora_fair"](regularisation=x)) for x in (1e-6, 0.01, 1e6)]
    assert fair[0] < fair[1] < fair[2]
    assert fair[2] == pytest.approx(distance(KIND["fedavg"]()), rel=1e-3)


@pytest.mark.parametrize("tau", [0.3, 0.9, 1.0])
def test_florist_keeps_the_fewest_components_with_enough_energy(tau):
    exact, cut = KIND["flora"](merged_rank=16), KIND["florist"](merged_rank=16, tau=tau)
    state = exact.first_state(c.INITIAL)
    updates = c.clients(exact, state, 10)[0]
    whole, kept = (c.served(s, s.combine(state, updates, 3)) for s in (exact, cut))
    for name, matrix in whole.items():
        if name.endswith("shift"):
            continue
        for full, left in zip(
            *(m.reshape(-1, *m.shape[-2:]) for m in (matrix, kept[name])), strict=True
        ):
            values = torch.linalg.svdvals(full) ** 2
            rank = int(torch.linalg.matrix_rank(left, atol=1e-6, rtol=1e-6))
            assert values[:rank].sum() >= tau * values.sum() * (1 - 1e-6)
            assert values[: rank - 1].sum() < tau * values.sum()


def test_a_task_of_flora_carries_as_many_merged_components_as_its_sum_has():
    found = {}
    for name, merged in (("flora", 9), ("flora", 3), ("florist", 9)):
        strategy = KIND[name](merged_rank=merged, **({"tau": 0.3} if name == "florist" else {}))
        state, sizes = strategy.first_state(c.INITIAL), []
        for round in (1, 2, 3):
            task, _ = c.start_of(strategy, state, round, rank=1)
            sizes.append(len(pack_task(task).buffer) - 4 * c.LAYERS)
            both = {"used": (c.ALL, c.ALL), "examples": (1, 2), "ranks": (1, 1)}
            updates = c.clients(strategy, state, 9 * round, **both)[0]
            state = strategy.combine(state, updates, 2)
        found[name, merged] = sizes
    by_rank = [4 * c.PLAIN.with_rank(rank).size for rank in range(6)]
    assert found["flora", 9] == [by_rank[1], by_rank[1 + 2], by_rank[1 + 4]]
    assert found["flora", 3] == [by_rank[1], by_rank[1 + 2], by_rank[1 + 3]]
    # The largest of three components has a third of the energy at least.
    assert found["florist", 9] == [by_rank[1], by_rank[1 + 1], by_rank[1 + 1]]


def test_fed_sb_computes_with_orthogonal_bases_that_follow_from_the_seed():
    strategy = KIND["fed_sb"]()
    state = strategy.first_state(c.INITIAL)
    task, local = c.start_of(strategy, state)
    one = Adapter(task.adapter.layout, torch.zeros_like(task.adapter.flat))
    for name, view in one.views().items():
        if name.endswith(".R"):
            view += torch.eye(c.RANK)
    model = local.start.copy()
    local.write(one, model)
    for name, view in model.views().items():
        if name.endswith(".B"):
            square = view.mT @ view / view.shape[-2]
            torch.testing.assert_close(square, torch.eye(c.RANK).expand_as(square))
    assert not c.dense(local.start)["0.experts.up"].any()
    again = c.start_of(strategy, state)[1].start
    assert torch.equal(again.flat, local.start.flat)


@pytest.mark.parametrize("name", ["scaffold", "ub_smoe"])
def test_a_server_optimiser_leaves_what_is_no_average_alone(name):
    strategy = KIND[name]()
    state = c.second_state(strategy)
    updates = c.clients(strategy, state, 10)[0]
    for update in updates:
        object.__setattr__(update, "tier", "t")
    server = ServerState(1, state, {"t": torch.ones(c.LAYERS)})
    plain, stepped = (
        finish_round(server, strategy, updates, **options, num_clients=3).adapter
        for options in ({}, {"optimizer": Adam()})
    )
    beside = strategy.extra_state(state.layout)
    for name, view in plain.views().items():
        same = torch.equal(view, stepped.views()[name])
        assert same == (name in {entry.name for entry in beside.entries}), name


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_scaffold_averages_adapters_uniformly_as_controls_unless_told(weighting):
    settings = {} if weighting == "uniform" else {"weighting": weighting}
    strategy = KIND["scaffold"](**settings)
    state = c.second_state(strategy)
    updates = c.clients(strategy, state, 10)[0]
    sizes = [1.0] * 3 if weighting == "uniform" else [1.0, 3.0, 6.0]
    half = c.PLAIN.size
    moves = [u.delta.flat.double() for u in updates]
    model = sum(n * m[:half] for n, m in zip(sizes, moves, strict=True)) / sum(sizes)
    control = sum(m[half:] for m in moves) / 7
    wanted = state.flat.double() + torch.cat([model, control])
    torch.testing.assert_close(strategy.combine(state, updates, 7).flat.double(), wanted)


def test_scaffold_holds_every_control_to_the_norm_of_a_clipped_gradient():
    strategy = KIND["scaffold"](most_gradient=0.5)
    state, size = strategy.first_state(c.INITIAL), c.PLAIN.size
    task, local = c.start_of(strategy, state)
    local.correct(torch.full((size,), 3.0), c.INITIAL.flat, c.counts_of(c.ALL))
    assert local.total.norm().item() == pytest.approx(0.5, rel=1e-5)
    local.finish(local.before, c.counts_of(c.ALL))
    update = c.update_of(task, local, local.before, c.ALL)
    lie = torch.cat([torch.zeros(size), torch.full((size,), 1e4)])
    lying = replace(update, delta=Adapter(update.delta.layout, lie))
    made = strategy.combine(state, [lying], num_clients=8)
    assert made.flat[size:].norm().item() == pytest.approx(2 * 0.5 / 8, rel=1e-5)

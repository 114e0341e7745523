"""Robust rules against slow loops over dense products."""

from statistics import median, median_low

import conformance as c
import pytest
import torch

from fedmoe.aggregation import FedAvg, Flame
from fedmoe.aggregation.robust.centred_clipping import CentredClipping
from fedmoe.aggregation.robust.clip import Clip
from fedmoe.aggregation.robust.fltrust import FLTrust
from fedmoe.aggregation.robust.geometric_median import GeometricMedian
from fedmoe.aggregation.robust.geometry import cosines, gram, moves_of
from fedmoe.aggregation.robust.guarded import fair
from fedmoe.aggregation.robust.krum import Krum, MultiKrum
from fedmoe.aggregation.robust.median import Median
from fedmoe.aggregation.robust.terms import Terms, capped
from fedmoe.aggregation.robust.trimmed_mean import TrimmedMean

SOME = ((0,), (1, 2))
USED = [
    (c.ALL,) * 6,
    (c.ALL, SOME, c.ALL, ((1,), (0, 1)), c.ALL, SOME, c.ALL),
    (SOME, ((1,), (0,))),
]
OWNERS = c.LAYERS * c.EXPERTS + 1
OFF = {"most_norm": None, "most_size": None, "most_share": None}


def round_of(used, strategy=None):
    """A state, its updates, sizes unlike, and their terms."""
    strategy, number = strategy or FedAvg(), len(used)
    state = c.second_state(strategy)
    updates = c.clients(
        strategy, state, 5, used=used, examples=range(1, number + 1), ranks=(c.RANK,) * number
    )[0]
    return strategy, state, updates, Terms.of(strategy, state, updates)


def reports(update, owner):
    return owner == OWNERS - 1 or bool(update.counts.flatten()[owner])


def part(tensors, layout, owner):
    """All values of one owner in a mapping of tensors by name, in one vector."""
    layer = {e.name.rpartition(".")[0]: e.layer for e in layout.entries}
    found = []
    for name, value in tensors.items():
        of = layer[name] if name in layer else layer[name.rpartition(".")[0]]
        if of is None and owner == OWNERS - 1:
            found.append(value.flatten())
        elif of is not None and owner // c.EXPERTS == of:
            found.append(value[owner % c.EXPERTS].flatten())
    return torch.cat(found).double()


def products(state, delta):
    """The dense change of the product of every owner, by subtraction."""
    old, new = c.dense(state), c.dense(state + delta)
    moved = {name: new[name] - old[name] for name in new}
    return [part(moved, state.layout, owner) for owner in range(OWNERS)]


@pytest.mark.parametrize("used", USED)
def test_inner_products_by_factors_are_those_of_the_dense_products(used):
    _, state, updates, _ = round_of(used)
    dense = [products(state, update.delta) for update in updates]
    found = gram(state, [update.delta for update in updates])
    for owner in range(OWNERS):
        rows = torch.stack([of[owner] for of in dense])
        torch.testing.assert_close(found[owner], rows @ rows.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("used", USED)
def test_cosines_are_those_of_the_dense_products_of_small_updates(used):
    _, state, updates, _ = round_of(used)
    small = [c.Adapter(update.delta.layout, 1e-3 * update.delta.flat) for update in updates]
    rows = torch.stack([torch.cat(products(state, delta)) for delta in small])
    rows /= rows.norm(dim=1, keepdim=True)
    found = cosines(state, [update.delta for update in updates])
    torch.testing.assert_close(found, rows @ rows.T, rtol=0, atol=5e-3)


@pytest.mark.parametrize("t", [1.0, 0.3])
def test_norms_of_a_scaled_update_are_those_of_the_dense_product(t):
    _, state, updates, _ = round_of(USED[1])
    known = {}
    for update in updates:
        dense = products(state, c.Adapter(update.delta.layout, t * update.delta.flat))
        wanted = torch.stack([of.norm() for of in dense])
        found = moves_of(state, update.delta, known).norms(t)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def slow_norms(state, delta):
    """By owner: the norms of the product, of dA, of dB and of what is no factor."""
    views, found = delta.views(), []
    for owner, product in enumerate(products(state, delta)):
        norms = [product.norm()]
        for kind in (".A", ".B", ".shift"):
            mine = {n: v for n, v in views.items() if n.endswith(kind)}
            shared = kind == ".shift" and owner < OWNERS - 1
            norms.append(
                product.new_zeros(()) if shared else part(mine, state.layout, owner).norm()
            )
        found.append([float(x) for x in norms])
    return found


@pytest.mark.parametrize("used", USED)
def test_clipping_keeps_the_largest_part_of_an_update_that_is_within_all_limits(used):
    _, state, updates, terms = round_of(used)
    terms.updates[0] = updates[0] = c.replace(
        updates[0], delta=c.Adapter(updates[0].delta.layout, 50 * updates[0].delta.flat)
    )
    norms = [slow_norms(state, update.delta) for update in updates]
    factors = Clip(most_norm=1.2).guard(terms, [moves_of(state, u.delta) for u in updates]).factors
    cut = 0
    for owner in range(OWNERS):
        limits = [1.2 * slow_typical(updates, norms, owner, m) for m in range(4)]
        for i, update in enumerate(updates):
            t = float(factors[i, owner])
            pairs = zip(norms[i][owner], limits, strict=True)
            assert (t < 1) == any(norm > limit + 1e-6 for norm, limit in pairs)
            if t < 1:
                cut += 1
                at = slow_norms(state, c.Adapter(update.delta.layout, t * update.delta.flat))[owner]
                ratios = [x / limit for x, limit in zip(at, limits, strict=True) if limit]
                assert max(ratios) == pytest.approx(1, abs=1e-4)
    assert cut


def slow_typical(updates, norms, owner, measure):
    """The lower median over reporters; of fewer than three, over clients of theirs in the layer."""
    mine = [norms[i][owner][measure] for i, u in enumerate(updates) if reports(u, owner)]
    if len(mine) >= 3 or owner == OWNERS - 1:
        return median_low(mine)
    layer = range(owner // c.EXPERTS * c.EXPERTS, (owner // c.EXPERTS + 1) * c.EXPERTS)
    of = [
        median_low([norms[i][o][measure] for o in layer if reports(u, o)])
        for i, u in enumerate(updates)
    ]
    return median_low(of)


def slow_krum(rows, f, number):
    """The places of the vectors with the smallest sums of squared distances to neighbours."""
    scores = []
    for i, x in enumerate(rows):
        apart = sorted(float((x - y).square().sum()) for j, y in enumerate(rows) if j != i)
        scores.append(sum(apart[: max(1, len(rows) - f - 2)]))
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))[:number]


def slow_weights(rule, rows, sizes, last):
    """Shares of the vectors of one owner by the rule, and that of the last move."""
    total = sum(sizes)
    if isinstance(rule, Krum | MultiKrum):
        chosen = slow_krum(rows, 1, 1 if isinstance(rule, Krum) else len(rows) - 1)
        most = sum(sizes[i] for i in chosen)
        return [sizes[i] / most * (i in chosen) for i in range(len(rows))], 0.0
    if isinstance(rule, GeometricMedian):
        nu = 1e-3 * (sum(float(x.square().sum()) for x in rows) / 7) ** 0.5  # of all 7 clients
        beta = sizes
        for _ in range(rule.steps):
            z = sum(b * x for b, x in zip(beta, rows, strict=True)) / sum(beta)
            beta = [n / max(nu, float((x - z).norm())) for n, x in zip(sizes, rows, strict=True)]
        return [b / sum(beta) for b in beta], 0.0
    at, on_last = [0.0] * len(rows), 1.0
    for _ in range(rule.steps):
        v = on_last * last + sum(a * x for a, x in zip(at, rows, strict=True))
        apart = [float((x - v).norm()) for x in rows]
        tau = rule.radius * median_low(apart)
        pull = [n / total * min(1, tau / d) for n, d in zip(sizes, apart, strict=True)]
        on_last *= 1 - sum(pull)
        at = [a * (1 - sum(pull)) + p for a, p in zip(at, pull, strict=True)]
    return at, on_last


@pytest.mark.parametrize(
    "rule", [Krum, MultiKrum, GeometricMedian, CentredClipping], ids=lambda r: r.name
)
def test_a_rule_weighs_as_the_loop_over_dense_products(rule):
    rule = rule(**OFF)
    strategy, state, updates, terms = round_of(USED[1])
    move = c.trained_by(c.start_of(strategy, state)[1], 9).flat * 0.1
    centre = rule.remembered(terms, c.Adapter(state.layout, state.flat + move))
    last = c.Adapter(state.layout, move * getattr(rule, "momentum", 0))
    dense = [products(state, update.delta) for update in updates]
    choice = rule.choose(terms, rule.guard(terms, []), centre)
    judged = 0
    for owner in range(OWNERS):
        who = [i for i, u in enumerate(updates) if reports(u, owner)]
        if len(who) < 5:
            assert torch.equal(choice.weights[:, owner], terms.weights[:, owner])
            continue
        judged += 1
        sizes = [float(terms.weights[i, owner]) for i in who]
        wanted, on_last = slow_weights(
            rule, [dense[i][owner] for i in who], sizes, products(state, last)[owner]
        )
        found = choice.weights[who, owner] / sum(sizes)
        torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=1e-3, atol=1e-4)
        if on_last:
            assert float(choice.anchor[1][owner]) / sum(sizes) == pytest.approx(on_last, abs=1e-4)
    assert judged > 2


def test_fltrust_weighs_by_the_cosine_with_the_root_and_makes_nothing_larger_than_it():
    strategy, state, updates, _ = round_of(USED[1])
    root, rule = updates.pop(0), FLTrust(root="rows.jsonl", **OFF)
    root = c.replace(root, delta=c.Adapter(root.delta.layout, 0.5 * root.delta.flat))
    terms = Terms.of(strategy, state, updates, root)
    choice, zero = rule.choose(terms, rule.guard(terms, []), {}), products(state, root.delta)
    for owner in range(OWNERS):
        rows = []
        for i, update in enumerate(updates):
            smaller = float(choice.factors[i, owner]) * update.delta.flat
            rows.append(products(state, c.Adapter(update.delta.layout, smaller))[owner])
            assert rows[-1].norm() <= zero[owner].norm() * 1.0001 + 1e-6
        trust = [
            max(0.0, float(torch.nn.functional.cosine_similarity(x, zero[owner], dim=0)))
            * float(terms.weights[i, owner])
            for i, x in enumerate(rows)
        ]
        mine = terms.used[:, owner]
        wanted = torch.tensor(trust).double()[mine]
        wanted = (
            wanted / wanted.sum() * terms.weights[mine, owner].sum() if wanted.any() else wanted
        )
        torch.testing.assert_close(choice.weights[mine, owner], wanted, rtol=1e-3, atol=1e-4)


def slow_coordinates(state, updates, least, middle):
    """One number at a time, over the clients that used its expert; over all for shared parts."""
    made, views = state.copy(), {id(u): u.delta.views() for u in updates}
    for entry, view in made.layout.views(made.flat):
        numbers = view.view(-1)
        for i in range(len(numbers)):
            expert = i // (len(numbers) // c.EXPERTS) if entry.layer is not None else None
            voters = [u for u in updates if expert is None or u.counts[entry.layer, expert]]
            sent = [float(views[id(u)][entry.name].view(-1)[i]) for u in voters]
            if len(sent) >= least:
                numbers[i] += middle(sent)
            elif sent:
                weights = [u.examples for u in updates]  # FedAvg's, of all
                terms = sum(u.examples * x for u, x in zip(voters, sent, strict=True))
                numbers[i] += terms / sum(weights)
    return made


@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize(
    ("rule", "least", "middle"),
    [(Median, 3, median), (TrimmedMean, 5, lambda x: sum(sorted(x)[1:-1]) / (len(x) - 2))],
)
def test_coordinates_are_those_of_each_experts_users(used, rule, least, middle):
    strategy, state, updates, _ = round_of(used)
    found = rule(**OFF).combine(strategy, state, updates, 9).state
    wanted = slow_coordinates(state, updates, least, middle)
    torch.testing.assert_close(found.flat, wanted.flat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [0.25, 0.5, 0.9])
def test_a_capped_share_is_the_largest_that_keeps_the_order_of_weights(most):
    noise = torch.rand(5, 40, generator=torch.Generator().manual_seed(3)).double() ** 6
    noise[:, 7] = torch.tensor([1.0, 1, 0, 0, 0])
    noise[:, 8] = 0
    found = capped(noise, most)
    for before, after in zip(noise.T, found.T, strict=True):
        there = int((before > 0).sum())
        if before.max() <= most * before.sum():
            assert torch.equal(before, after)
            continue
        assert after.max() / after.sum() <= max(most, 1 / there) + 1e-9
        assert (before[after < before] >= after.max()).all()  # only the largest are lowered,
        assert len(set(after[after < before].tolist())) <= 1  # and to one value
        assert after.max() / after.sum() == pytest.approx(max(most, 1 / there))


@pytest.mark.parametrize("most", [1.0, 2.5])
def test_a_size_counts_up_to_a_multiple_of_the_lower_median(most):
    sizes = [7, 0, 2, 3, 900, 2]
    found = fair(torch.tensor(sizes).double(), most)
    middle = median_low(n for n in sizes if n)
    for n, factor in zip(sizes, found, strict=True):
        assert float(factor) == (1 if n <= most * middle else most * middle / n)


def test_flame_weighs_what_the_rule_wraps():
    strategy, state, updates, _ = round_of(USED[1], Flame(temperature=1.0))
    found = Clip(**OFF).combine(strategy, state, updates, 9).state
    assert found.digest() == strategy.combine(state, updates, 9).digest()

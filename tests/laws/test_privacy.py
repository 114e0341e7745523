"""Differential privacy: a client's vector of norm 1, noise that is what it says, an account."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conformance import ALL, EXPERTS, LAYERS, PLAIN, TOKENS, counts_of
from scipy.stats import kstest, norm

from fedmoe.adapter import Adapter
from fedmoe.aggregation import FedAvg, Flame
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.messages.records import Update
from fedmoe.privacy.accountant import Accountant, Spent, calibrated
from fedmoe.privacy.noise import SystemNormals, add_noise
from fedmoe.privacy.private_mean import (
    LARGEST_LOSS,
    LEAST_SHARE,
    Mechanism,
    PrivateMean,
    Tally,
    even_weights,
    weights_bound,
)
from fedmoe.privacy.settings import AdaptiveClip, Privacy
from fedmoe.privacy.vector import Vector

STATE = Adapter(PLAIN, torch.zeros(PLAIN.size))
EVEN = FedAvg(weighting="uniform")


def silent(number):
    """No noise."""
    return np.zeros(number)


def private_mean(strategy=EVEN, num_clients=4, clip=1.0, noise=1.0, normals=silent, **settings):
    privacy = Privacy(epsilon=8, delta=1e-5, clip=clip, **settings)
    even = even_weights(strategy, privacy, [1] * num_clients, PLAIN)
    mechanism = Mechanism(privacy, noise, 1.0, float(num_clients), even)
    return PrivateMean(strategy, mechanism, clip, normals=normals)


def update(client=0, size=0.01, used=ALL, seed=0, **changes):
    delta = torch.randn(PLAIN.size, generator=torch.Generator().manual_seed(seed)) * size
    fields = {"examples": 50, "tokens": TOKENS, "loss_before": 2.0, "loss_after": 1.0} | changes
    return Update(
        round=1,
        client=client,
        tier="low",
        top_k=1,
        rescaler=torch.ones(LAYERS),
        delta=Adapter(PLAIN, delta),
        counts=counts_of(used),
        steps=1,
        seconds=1.0,
        peak_bytes=0,
        **fields,
    )


def vector_of(mean: PrivateMean, client: Update) -> np.ndarray:
    """All that leaves a client, each part over its bound and times the root of its share; slow."""
    m, p = mean.mechanism, mean.mechanism.privacy
    tally = Tally(torch.zeros_like(m.even))
    weights, changes = mean.weigh(client, tally), []
    for entry, view in client.delta.layout.views(client.delta.flat.double()):
        if entry.layer is None:
            changes.append(weights.shared * view.flatten())
        else:
            changes += [weights.experts[entry.layer, e] * view[e].flatten() for e in range(EXPERTS)]
    parts = [torch.cat(changes).numpy() / mean.clip * math.sqrt(m.changes_share)]
    if p.denominators == "noised":
        parts.append(tally.weights.numpy() / weights_bound(m) * math.sqrt(p.weights_share))
    if p.reports_share:
        parts.append(tally.reports.numpy() / math.sqrt(3) * math.sqrt(p.reports_share))
    if p.adaptive:
        parts.append(tally.within.numpy() / 0.5 * math.sqrt(p.adaptive.share))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (EVEN, {}),
        (EVEN, {"adaptive": AdaptiveClip(), "reports_share": 0.3}),
        (Flame(temperature=2.0), {"denominators": "noised"}),
        (Flame(temperature=0.5), {"denominators": "noised", "adaptive": AdaptiveClip()}),
    ],
)
def test_a_clients_vector_has_a_norm_of_at_most_one(strategy, settings):
    mean = private_mean(strategy, clip=0.3, **settings)
    liar = {"loss_before": 1e300, "loss_after": -1e300, "examples": 10**9, "tokens": TOKENS}
    for client in (
        update(size=1e4),
        update(size=1e-9),
        update(size=1e4, **liar),
        update(size=1.0, used=((0,), (0,)), **liar),
    ):
        assert np.linalg.norm(vector_of(mean, client)) <= 1 + 1e-6
    assert np.linalg.norm(vector_of(mean, update(size=1e4, **liar))) > 0.9
    # Weights beyond their bound, such as those of one expert that takes all of many layers' tokens.
    mean.mechanism = replace(mean.mechanism, even=mean.mechanism.even / 10)
    assert np.linalg.norm(vector_of(mean, update(size=1.0))) <= 1 + 1e-6


def test_nothing_else_of_an_update_moves_the_state():
    """The state depends on the vector alone: what is not in it is seen by nobody."""
    first = private_mean().combine(STATE, [update()])
    other = replace(update(), seconds=77.0, peak_bytes=5, metrics={"a": 1.0}, steps=9)
    assert torch.equal(first.flat, private_mean().combine(STATE, [other]).flat)


def test_without_noise_and_under_the_bound_it_is_fedavg():
    updates = [update(client, seed=client) for client in range(4)]
    private = private_mean(clip=1e6, reports_share=0.0).combine(STATE, updates)
    plain = EVEN.combine(STATE, updates)
    torch.testing.assert_close(private.flat, plain.flat, atol=1e-7, rtol=1e-6)


def test_one_client_moves_the_state_by_its_share_of_the_bound():
    honest = [update(client, seed=client) for client in range(3)]
    mean = private_mean(clip=0.5)
    without = mean.combine(STATE, honest)
    moved = mean.combine(STATE, [*honest, update(3, size=1e6, seed=9)])
    assert float((moved.flat - without.flat).norm()) == pytest.approx(0.5 / 4, rel=1e-4)


def test_noise_has_the_stated_deviation_everywhere():
    """Also where no client had a token, and in a round without any: the support tells nothing."""
    mean = private_mean(noise=1.5, clip=0.2, normals=None, reports_share=0.5)
    used = update(used=((0,), (1,)), size=0.0)
    deviation = 1.5 * 0.2 / math.sqrt(1 - 0.5) / 4
    for updates in ([used], []):
        draws = torch.cat([mean.combine(STATE, updates).flat for _ in range(40)]).double()
        assert kstest((draws / deviation).numpy(), "norm").pvalue > 1e-4
    idle = mean.combine(STATE, [used]).views()["0.experts.up.A"][2]
    assert float(idle.abs().min()) > 0


def test_a_round_without_updates_has_noise_where_others_have_it():
    """Of a strategy that sends a part of the adapter: noise on the rest would tell."""
    part = replace(PLAIN, entries=PLAIN.entries[:2])
    mean = replace(private_mean(FedAvg(weighting="uniform"), normals=None), layout=part)
    moved = mean.combine(STATE, [])
    still = [name for name, values in moved.views().items() if not values.any()]
    assert still == [entry.name for entry in PLAIN.entries[2:]]


def test_what_has_no_noise_is_in_no_sum():
    """Masks give sums away: of the bound's indicator, too, where no noise is meant for it."""
    for settings in ({"reports_share": 0.0}, {"reports_share": 0.0, "adaptive": AdaptiveClip()}):
        mean = private_mean(clip=0.1, **settings)
        sums = []
        for size in (1e-6, 1e3):
            mean.weigh(update(size=size), tally := Tally(torch.zeros_like(mean.mechanism.even)))
            sums.append(torch.cat([tally.weights, tally.reports, tally.within]))
        assert torch.equal(*sums) == ("adaptive" not in settings)


def test_noise_comes_from_the_system_and_never_twice():
    torch.manual_seed(0)
    np.random.seed(0)
    first = SystemNormals()(50_001)
    torch.manual_seed(0)
    np.random.seed(0)
    second = SystemNormals()(50_001)
    assert len(first) == 50_001
    assert not np.intersect1d(first, second).size
    assert kstest(first, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    values = torch.zeros(2**20 + 3).double()
    add_noise(values, 3.0, SystemNormals())
    assert float(values.std()) == pytest.approx(3.0, rel=0.01)
    assert float(values[-3:].abs().min()) > 0


@pytest.mark.parametrize("noise", [0.6, 1.0, 2.5])
def test_epsilon_of_one_round_is_the_gaussian_mechanisms(noise):
    """Against Balle and Wang 2018 (arXiv:1805.06530, Theorem 8), solved by bisection."""

    def delta(epsilon):
        half, part = 1 / (2 * noise), epsilon * noise
        return norm.cdf(half - part) - math.exp(epsilon) * norm.cdf(-half - part)

    low, high = 0.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-5 else (low, middle)
    assert Accountant(1e-5).epsilon([Spent(noise, 1.0)]) == pytest.approx(high, rel=2e-3)


def test_rounds_add_up_and_a_secret_sample_costs_less():
    accountant, kinds = Accountant(1e-5), ((0.1, 5), (0.1, 10), (0.5, 10), (1.0, 10))
    assert accountant.epsilon([]) == 0
    costs = [accountant.epsilon([Spent(1.0, q)] * n) for q, n in kinds]
    assert costs == sorted(costs)
    whole = Spent(1.0, 1.0)
    assert accountant.epsilon([Spent(1.0, 0.1), whole]) > accountant.epsilon([whole])
    # Less noise in an earlier round is not forgotten.
    assert accountant.epsilon([Spent(0.5, 1.0), whole]) > 1.5 * accountant.epsilon([whole, whole])


def test_the_chosen_noise_spends_the_budget_and_no_more():
    noise = calibrated(2.0, 1e-5, 0.1, 20)
    assert 1.98 < Accountant(1e-5).epsilon([Spent(noise, 0.1)] * 20) <= 2.0 + 1e-6


def test_the_bound_follows_the_quantile():
    """Without noise the bound ends where half of the clients' norms are under it."""
    mean = private_mean(clip=1.0, adaptive=AdaptiveClip(rate=0.2), num_clients=5)
    updates = [update(c, size=s, seed=c) for c, s in enumerate((0.001, 0.002, 0.01, 0.02, 0.03))]
    for _ in range(100):
        mean.combine(STATE, updates)
    norms = sorted(float(u.delta.flat.norm()) for u in updates)
    assert norms[1] < mean.clip < norms[3]


def test_noised_denominators_are_never_near_zero():
    mean = private_mean(Flame(), denominators="noised", normals=lambda n: np.full(n, -1e3))
    moved = mean.combine(STATE, [update()])
    m = mean.mechanism
    descent = -1e3 * m.deviation(mean.clip, m.changes_share)
    shared = -descent / (float(m.even[-1]) * 4 * LEAST_SHARE)
    assert moved.views()["q.A"].mean().item() == pytest.approx(shared, rel=1e-4)


def test_reports_are_cut_and_noised():
    mean = private_mean(normals=silent)
    mean.combine(STATE, [update(c, loss_before=1e200, loss_after=2.0) for c in range(4)])
    assert mean.report["loss_before"] == LARGEST_LOSS
    assert mean.report["loss_after"] == pytest.approx(2.0)
    assert mean.report["examples"] == pytest.approx(50)
    assert "loss_before" not in private_mean(reports_share=0.0).report


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["aggregation.name=flexlora"], "privacy"),
        (["aggregation.name=fedavg"], "privacy.denominators"),
        (["aggregation.weighting=uniform", "rescaling.name=learned"], "rescaling.name"),
        (["data={name: federated, path: rows}", "partition={name: natural}"], "data.clients"),
        (["data={name: federated, path: rows}", "early_stopping={}"], "early_stopping"),
    ],
)
def test_what_noise_cannot_hide_is_refused(overrides, place):
    with pytest.raises(ConfigError, match=place):
        load_experiment("quickstart", ["privacy={epsilon: 8, delta: 1e-3, clip: 1}", *overrides])


@pytest.mark.parametrize("examples", [15_000, 10**7])
def test_a_client_of_many_examples_is_in_the_sum_whatever_its_weight(examples):
    """Its number is cut to what the server admits, and is in no message."""
    vector = Vector(EVEN, PLAIN, 4, 1.0, 1.0, 2**20, most_examples=10**6)
    total = vector.of(update(examples=examples))
    _, report = vector.next_state(STATE, total, 1)
    assert report["examples"] == pytest.approx(min(examples, 10**6), rel=1e-6)
    with pytest.raises(FedMoEError, match="changes is beyond the range") as caught:
        vector.of(update(examples=examples, size=777.0))
    assert not {"777", str(examples)} & {*str(caught.value).replace(";", " ").split()}

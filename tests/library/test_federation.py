"""A federation in memory: own rows, own strategy, own local step, own metric, plain results."""

import pytest
import torch

import fedmoe as fm
from fedmoe.errors import ConfigError, FedMoEError

THINGS, WAYS = ("lamp", "fan", "radio", "heater", "oven", "tap"), ("on", "off", "up", "down")
ROWS = [(f"turn the {thing} {way}", f"{thing}.{way}") for thing in THINGS for way in WAYS]
SMALL = {"training": fm.Training(steps=2, batch_size=2, probe_examples=2)}


def clients_of(number=3):
    tiers = ("high", "low", "low")
    return [fm.Client(ROWS[i::number], tier=tiers[i % 3], name=f"site-{i}") for i in range(number)]


@pytest.fixture(scope="module")
def federation(tiny_folder):
    def make(**changes):
        tiers = {"high": fm.Tier(top_k=4), "low": fm.Tier(top_k=1)}
        given = {"tiers": tiers, "lora": fm.LoRA(rank=2), **SMALL} | changes
        return fm.Federation(tiny_folder, clients_of(), **given)

    return make


class Largest(fm.Strategy):
    """Takes the update of the client with the most examples, and no other."""

    def combine(self, adapter, updates, num_clients=0):
        return adapter + max(updates, key=lambda update: update.examples).delta


def test_a_round_is_a_function_of_the_state_and_the_seed(federation):
    one, other = federation(), federation()
    state, updates = one.round(one.init(), clients=2)
    again, _ = other.round(other.init(), clients=2)
    assert (state.round, len(updates)) == (1, 2)
    assert state.adapter.digest() == again.adapter.digest() != one.init().adapter.digest()
    third, _ = federation(seed=1).round(one.init(), clients=2)
    assert third.adapter.digest() != state.adapter.digest()


def test_tiers_and_clients_are_as_they_were_given(federation):
    fed = federation()
    assert [update.top_k for update in fed.round(fed.init())[1]] == [4, 1, 1]
    assert sum(fed.held_out.values()) + sum(u.examples for u in fed.round(fed.init())[1]) == 24


def test_an_own_strategy_combines(federation):
    fed = federation(strategy=Largest())
    before = fed.init()
    state, updates = fed.round(before)
    largest = max(updates, key=lambda update: update.examples)
    assert torch.equal(state.adapter.flat, (before.adapter + largest.delta).flat)
    left = fed.combine(before, updates[:1])
    assert torch.equal(left.adapter.flat, (before.adapter + updates[0].delta).flat)


def test_an_own_local_step_trains_and_reports(federation):
    def sgd(client, task):
        optimizer = torch.optim.SGD([client.flat], lr=0.1)
        for batch in client.batches(3):
            client.loss(batch).backward()
            norm = float(client.flat.grad.norm())
            optimizer.step()
            optimizer.zero_grad()
        return {"gradient_norm": norm, "round": task.round}

    fed = federation(local=sgd)
    state, updates = fed.round(fed.init())
    assert all(u.steps == 3 and u.metrics["gradient_norm"] > 0 for u in updates)
    assert all(u.loss_after != u.loss_before for u in updates)
    assert state.adapter.digest() != fed.init().adapter.digest()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda client, task: {}, "`client.loss` was never called"),
        (lambda client, task: [next(client.batches(1))], "returned list; expected a dict or None"),
    ],
)
def test_a_local_step_that_does_nothing_useful_is_a_clear_error(federation, step, said):
    fed = federation(local=step)
    with pytest.raises(FedMoEError, match=f"site-0 failed: .*{said}"):
        fed.round(fed.init())


def test_an_own_metric_scores(federation):
    from fedmoe.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(metric=lambda example, answer: 0.25, max_new_tokens=2)
    found = federation(evaluation=settings).evaluate(federation().init())
    assert found.scores == {"high": 0.25, "low": 0.25}
    assert found.losses["high"] > 0


def test_a_whole_run_writes_a_folder_that_opens_again(federation, tmp_path):
    results = federation(rounds=1).run(tmp_path, name="memory")
    assert results.complete
    assert results.report.is_file()
    again = fm.open_run(tmp_path / "memory")
    assert again.scores == results.scores
    assert {line["kind"] for line in again.ledger} >= {"run", "client", "round", "end"}


def test_single_rounds_of_hidden_updates_are_refused(federation):
    """Without a word they would be shown: a round returns its updates."""
    from fedmoe.privacy.masks.settings import SecureAggregation
    from fedmoe.privacy.settings import Privacy

    for hidden in (
        {"secure_aggregation": SecureAggregation()},
        {"privacy": Privacy(epsilon=8, delta=1e-3, clip=0.5, denominators="noised")},
    ):
        fed = federation(**hidden)
        with pytest.raises(FedMoEError, match="hides them: use `run`"):
            fed.round(None)
        with pytest.raises(FedMoEError, match=f"leave out {next(iter(hidden))}"):
            fed.combine(None, [])


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ([], "clients: there is none; give at least one"),
        ([fm.Client(ROWS, tier="hihg")], r"clients\[0\]\.tier: 'hihg' is not one of 'high'"),
        ([fm.Client(ROWS, name="a"), fm.Client(ROWS, name="a")], "another client's name, too"),
    ],
)
def test_what_cannot_be_is_said_at_once(clients, said):
    with pytest.raises(ConfigError, match=said):
        fm.Federation("mini", clients, tiers={"high": fm.Tier(top_k=4)})

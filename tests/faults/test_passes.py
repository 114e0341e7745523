"""Passes of several clients in a run: what they give, what they refuse, and who fails with whom."""

import os
import signal
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch
from said_rows import said_rows

from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.simulation import Simulation
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.errors import ConfigError, FedMoEError, ModelError
from fedmoe.messages.records import Failure, Update
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.packed import check_packed
from fedmoe.rounds import plan_round
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.identity import settings_text
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.local.passes import passes
from fedmoe.runs.local.pool import Pool
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

TIERS = {"high": Tier(top_k=4), "low": Tier(top_k=1), "thin": Tier(top_k=2, frozen="int8")}


@pytest.fixture(scope="module")
def prepared(tiny_folder, tmp_path_factory):
    """Six clients of three tiers, of which those of one form of experts share passes of two."""
    path = said_rows(tmp_path_factory.mktemp("data"))
    experiment = Experiment(
        rounds=2,
        model=ModelSettings(path=str(tiny_folder)),
        adapter=LoRA(rank=2),
        data=LocalFiles(path=str(path)),
        partition=Iid(num_clients=6),
        budget=Levels(tiers=TIERS),
        training=Training(steps=2, batch_size=3, probe_examples=3),
        simulation=Simulation(clients_per_pass=2),
    )
    return prepare(experiment)


@pytest.fixture(scope="module")
def tasks(prepared):
    return plan_round(prepared.server.first_state(), prepared.server.members, 6, 0)


@pytest.fixture(scope="module")
def updates(prepared, tasks):
    """One round in passes of two."""
    return [*InProcess(prepared.server, prepared.scorer)(tasks)]


def with_client(prepared, kind, **changes):
    """The run with another client side."""
    values = {f.name: getattr(prepared.client, f.name) for f in fields(ClientSide)}
    return replace(prepared.scorer, client=kind(**(values | changes)))


def digests(updates):
    return [update.delta.digest() for update in updates]


def test_a_pass_has_clients_of_one_form_and_answers_come_in_order(prepared, tasks, updates):
    tiers = [task.tier for task in tasks]
    found = [*passes(prepared.setup, tasks)]
    assert sorted(i for places in found for i in places) == [*range(6)]
    assert [len(places) for places in found] == [2, 2, 2]
    met = [{tiers[i] for i in places} for places in found]
    assert {"thin"} in met
    assert all("thin" not in tiers for tiers in met if tiers != {"thin"})
    assert any(len(tiers) == 2 for tiers in met)
    assert [update.client for update in updates] == [task.client for task in tasks]


def test_results_are_those_of_clients_alone_but_for_rounding(prepared, tasks, updates):
    alone = [prepared.client.train(task) for task in tasks]
    for one, other in zip(updates, alone, strict=True):
        assert torch.equal(one.counts, other.counts)
        assert (one.tokens, one.steps) == (other.tokens, other.steps)
        assert one.loss_after == pytest.approx(other.loss_after, rel=1e-5)
        torch.testing.assert_close(one.delta.flat, other.delta.flat, rtol=1e-3, atol=1e-5)
    assert digests(updates) != digests(alone)


@dataclass(frozen=True, eq=False)
class Broken(ClientSide):
    """A pass that fails half-way."""

    def train_together(self, tasks):
        super().train_together(tasks)
        raise FedMoEError("no pass today")


def test_after_a_failed_pass_each_client_trains_alone_and_it_is_said(prepared, tasks, caplog):
    found = [*InProcess(prepared.server, with_client(prepared, Broken))(tasks)]
    assert digests(found) == digests(prepared.client.train(task) for task in tasks)
    assert "a pass of clients" in caplog.text
    assert "no pass today" in caplog.text


def test_a_client_that_cannot_train_takes_no_other_along(prepared, tasks):
    rows = dict(prepared.client.rows) | {tasks[2].client: ()}
    scorer = with_client(prepared, ClientSide, rows=rows)
    found = [*InProcess(prepared.server, scorer)(tasks)]
    assert [type(one) for one in found] == [Update, Update, Failure, Update, Update, Update]
    assert "has no training examples" in found[2].reason


@dataclass(frozen=True, eq=False)
class Deadly(ClientSide):
    """A client that ends its process."""

    def _trainee(self, task, local):
        if task.client == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._trainee(task, local)

    def answer(self, task):
        self._trainee(task, None)
        return super().answer(task)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("deadly", [False, True])
def test_workers_give_the_same_bits_and_a_dead_pass_costs_one_client(
    prepared, tasks, updates, tmp_path, deadly
):
    scorer = with_client(prepared, Deadly) if deadly else prepared.scorer
    pool = Pool(prepared.server, scorer, 2, folder=tmp_path)
    try:
        found = [*pool(tasks)]
    finally:
        pool.close()
    if not deadly:
        assert digests(found) == digests(updates)
        return
    assert [one.client for one in found if isinstance(one, Failure)] == [1]
    mates = [i for places in passes(prepared.setup, tasks) if 1 in places for i in places]
    rest = [i for i in range(6) if i not in mates]
    assert digests(found[i] for i in rest) == digests(updates[i] for i in rest)


def test_passes_are_part_of_a_runs_identity_and_workers_are_not(prepared):
    base = prepared.setup.experiment
    text = settings_text(base)
    for changed, same in (({"workers": 3}, True), ({"clients_per_pass": 3}, False)):
        other = replace(base, simulation=replace(base.simulation, **changed))
        assert (settings_text(other) == text) is same


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("adapter.dropout=0.1", "adapter.dropout draws from each client's stream"),
        ("adapter.router=true", "adapter.router trains routers"),
        ("gating.name=top_p", "gating.name 'top_p' may let tokens of others decide"),
        ("losses.z=0.1", "losses.z are of one client's tokens"),
        ("aggregation.name=ub_smoe", "aggregation.name 'ub_smoe' changes routers"),
        ("budget={tiers: {a: {top_k: 1, subset: {keep: 4}}}}", "budget.tiers.a.subset"),
        ("clients_per_round=2", "3 is over clients_per_round; lower it"),
    ],
)
def test_what_a_pass_cannot_carry_is_refused(tmp_path, setting, said):
    path = tmp_path / "passes.yaml"
    path.write_text("simulation: {clients_per_pass: 3}\n")
    load_experiment(path)
    with pytest.raises(ConfigError, match=r"simulation\.clients_per_pass: ") as caught:
        load_experiment(path, [setting])
    assert said in str(caught.value)


def test_a_model_whose_attention_looks_elsewhere_is_refused(tiny_model):
    check_packed(tiny_model("mixtral"), 24)
    with pytest.raises(ModelError, match="at up to 24 tokens; use 1"):
        check_packed(tiny_model("mixtral", sliding_window=8), 24)

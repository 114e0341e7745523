"""Every strategy gives the same bits in this process, on workers, and over Flower's grid."""

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from fake_grid import FakeGrid
from safetensors.torch import load_file
from sides import changed
from sums import DEVICE

from fedmoe.aggregation import STRATEGIES
from fedmoe.comparison.baselines import LocalOnly
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure, Task
from fedmoe.rounds import plan_round, run_rounds
from fedmoe.runs.local.in_process import InProcess, make_transport
from fedmoe.runs.prepare import prepare
from fedmoe.runs.saved_adapter import deployed
from fedmoe.runs.session import Evaluator, Phases
from server.settings import Settings
from server.transport import GridTransport

ALONE = "fedmoe.comparison.baselines:LocalOnly"
KINDS = {kind().name: kind for kind in STRATEGIES} | {ALONE: LocalOnly}
every = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def run_of(experiment_file, tmp_path_factory):
    """A prepared run of a strategy, with clients of two ranks where it takes them."""

    def make(name):
        kind = KINDS[name]
        chosen = [f"aggregation={{name: '{name}'}}", "training.steps=1"]
        if not kind.averages_factors:
            chosen.append("rescaling={name: none}")
        if kind.asynchronous:
            chosen.append(f"devices={{high: {DEVICE}, low: {DEVICE}}}")
        if kind.mixed_ranks:
            chosen.append("budget.tiers.low.rank=2")
        run = prepare(load_experiment(experiment_file, chosen))
        return changed(run, state_folder=tmp_path_factory.mktemp(kind.__name__))

    return make


def beside(run, folder, workers=1):
    """The run on the same model, with other workers and clients' states in another folder."""
    e = run.setup.experiment
    simulation = replace(e.simulation, workers=workers)
    return changed(run, experiment=replace(e, simulation=simulation), state_folder=folder)


def states(run, transport):
    """The state after each round; a client that fails says why."""
    e, seen = run.setup.experiment, []

    class Watch:
        def planned(self, tasks): ...
        def answered(self, task, answer):
            assert not isinstance(answer, Failure), answer.reason

        def finished(self, state):
            seen.append(state.adapter.digest())

    try:
        run_rounds(
            run.server.first_state(),
            run.server.members,
            e.aggregation,
            transport,
            [Watch()],
            num_rounds=2,
            clients_per_round=3,
            seed=e.seed,
            send=run.server.send_to,
        )
    finally:
        transport.close()
    return seen


def kept(run):
    """Clients' states by file; safetensors writes its header in any order."""
    root = run.client.state_folder
    paths = root.rglob("*.safetensors")
    return {str(p.relative_to(root)): load_file(p)["values"].tolist() for p in paths}


@pytest.fixture(scope="module")
def alone(run_of):
    """By name: a run in this process, and its states."""

    @cache
    def played(name):
        run = run_of(name)
        return run, states(run, InProcess(run.server, run.scorer))

    return played


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@every
def test_two_workers_give_the_states_of_one_and_clients_keep_the_same(name, alone, tmp_path):
    one, found = alone(name)
    two = beside(one, tmp_path, workers=2)
    assert found == states(two, make_transport(two.server, two.scorer))
    assert kept(one) == kept(two)
    assert len(set(found)) == (1 if name == ALONE else 2)


@pytest.mark.parametrize("name", [name for name in KINDS if name != ALONE])  # a node imports none
def test_the_grid_gives_the_states_of_this_process(name, alone, tmp_path):
    one, found = alone(name)
    here, state = beside(one, tmp_path / "here"), {"state": str(tmp_path / "nodes")}
    grid = GridTransport(FakeGrid(state, state), here.server, here.scorer, Settings(num_nodes=2))
    assert states(here, grid) == found


def test_where_clients_keep_a_part_a_tier_scores_the_mean_of_its_clients(alone):
    run = alone(ALONE)[0]
    shown = []

    class Sink:
        def begun(self, *args):
            pass

        def evaluated(self, *args):
            shown.extend(args[-1])

    workers = InProcess(run.server, run.scorer)
    e = Evaluator(run.server, workers, Sink(), Sink(), Phases())  # pyright: ignore
    e.measure(replace(run.server.first_state(), round=2), "test")
    both = {x.tier: x for x in shown}
    assert set(both) == {"high", "low"}
    clients = [m.client for m in run.server.members if m.tier == "high"]
    assert len(clients) == 2
    alone = [_loss_of(run, client) for client in clients]
    assert alone[0] != alone[1]
    assert both["high"].loss == pytest.approx(sum(alone) / 2)


def test_what_a_client_keeps_does_not_enter_the_score_of_a_common_model(alone):
    run = alone("hetlora")[0]  # whose clients keep a rank, some a lower one than others' tiers have
    state = run.server.first_state()
    for tier, top_k in run.setup.top_ks.items():
        served = [
            run.client.deployed_adapter(
                Task(
                    3,
                    m.client,
                    tier,
                    top_k,
                    state.rescalers[tier],
                    run.server.send(state.adapter, tier),
                )
            ).flat
            for m in run.server.members
        ]
        assert all(torch.equal(served[0], other) for other in served)


def _loss_of(run, client):
    """The test loss of one client of the high tier."""
    state = run.server.first_state()
    task = Task(
        3, client, "high", 4, state.rescalers["high"], run.server.send(state.adapter, "high")
    )
    return run.scorer.score(pack_task(task), "test").loss


def test_a_strategy_that_cannot_combine_unlike_ranks_says_which_can(experiment_file):
    said = r"ranks \(high 4, low 2\) below .* 'fedavg' cannot combine; hetlora, flexlora, .* can"
    overrides = ["aggregation={name: fedavg}", "budget.tiers.low.rank=2"]
    with pytest.raises(ConfigError, match=said):
        prepare(load_experiment(experiment_file, overrides))
    overrides[1:] = ["budget.tiers.low.rank=2", "budget.tiers.high.rank=2"]  # one rank, but lower
    with pytest.raises(ConfigError, match=r"below adapter\.rank, 4"):
        prepare(load_experiment(experiment_file, overrides))
    overrides = ["aggregation={name: flora}", "budget.tiers.low.rank=9"]
    with pytest.raises(ConfigError, match=r"budget.tiers.low.rank: 9 is over adapter.rank"):
        prepare(load_experiment(experiment_file, overrides))


def test_with_a_constant_scale_a_tier_of_a_lower_rank_trains_and_is_scored_at_the_adapters(
    experiment_file,
):
    overrides = ["aggregation={name: flexlora}", "budget.tiers.low.rank=2"]
    for scale, ratio in (("constant", 1.0), ("alpha_over_rank", 2.0)):
        run = prepare(load_experiment(experiment_file, [*overrides, f"adapter.scale={scale}"]))
        member = next(m for m in run.server.members if m.tier == "low")
        sent = run.server.send_to(run.server.first_state().adapter, member)
        low = [run.setup.plain("low"), sent.layout]
        initial = run.server.first_state().adapter
        low.append(deployed(run.setup.experiment, initial, initial, 1, 4, "low").layout)
        assert [x.rank for x in low] == [2, 2, 2]
        assert [x.scale for x in low] == [ratio * run.setup.plain("high").scale] * 3


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        (ALONE, "server_optimizer.name=adam", "has nothing to step by"),
        (ALONE, "rescaling={name: learned}", "'learned' has no meaning .* 'none' or 'static'"),
        ("flexlora", "upload.name=int4", "means something else in the next round"),
        ("rolora", "upload.name=int4", "means something else in the next round"),
        ("fedbuff", "rescaling={name: learned}", "'learned' has no meaning .* 'none' or 'static'"),
        ("fedbuff", "rescaling={name: none}", "virtual time of clients"),
        ("ub_smoe", "rescaling={name: static, by: mass}", "use 'ratio'"),
        ("ub_smoe", "gating.name=top_p", "both change what routers choose; use 'top_k'"),
        ("fedprox", "training.local_step=math:sqrt", "does to gradients; use another strategy"),
        ("fed_sb", "training.local_step=math:sqrt", "'fed_sb' trains a part of it"),
        ("flexlora", "adapter.scale=constant", "no effect where every tier has adapter.rank"),
        ("hfedmoe', experts: {middle: 2}, weighting: 'tokens", "seed=1", "experts.middle: no such"),
        ("flux', router_agreement: true, weighting: 'tokens", "seed=1", "no router is trained"),
        ("flame', unit: 'step", "secure_aggregation={}", "no room for; use 'token'"),
    ],
)
def test_settings_that_a_strategy_gives_no_meaning_to_are_refused(
    experiment_file, name, setting, said
):
    with pytest.raises(ConfigError, match=said):
        prepare(load_experiment(experiment_file, [f"aggregation={{name: '{name}'}}", setting]))


def test_all_faults_of_all_parts_are_found_when_settings_are_loaded(experiment_file):
    overrides = [
        "aggregation={name: ub_smoe}",
        "rescaling={name: static, by: mass}",
        "gating.name=competition",
        "losses.load=0.1",
        "budget.tiers.low.rank=2",
        "faults=drop=2",
    ]
    with pytest.raises(ConfigError) as caught:
        load_experiment(experiment_file, overrides)
    assert {fault.path for fault in caught.value.faults} == {
        "rescaling.by",
        "gating.name",
        "losses.load",
        "budget.tiers",
        "faults",
    }


def test_a_tier_with_steps_of_its_own_trains_that_many(experiment_file):
    overrides = ["training.steps=3", "budget.tiers.low.steps=1"]
    run = prepare(load_experiment(experiment_file, overrides))
    steps = {}
    for member in run.server.members:
        task = next(
            t
            for t in plan_round(
                run.server.first_state(), run.server.members, 4, 0, run.server.send_to
            )
            if t.client == member.client
        )
        steps.setdefault(member.tier, set()).add(run.client.train(task).steps)
    assert steps == {"high": {3}, "low": {1}}

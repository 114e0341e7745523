"""A node that plans for itself: what it is asked for it does as far as its machine goes."""

import json
from dataclasses import replace

import pytest
import torch
from sums import write_sums

from clients.resident import carry_out, resident
from clients.worker_frames import Order
from fedmoe.budget import Auto
from fedmoe.budget.measure import Sample
from fedmoe.budget.model import Constants
from fedmoe.budget.probe import Machine
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, FedMoEError, ModelError
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Task
from fedmoe.runs import client_side as preparing
from fedmoe.runs import node_budget as planning
from fedmoe.runs.node_budget import OwnBudget, planned_here
from fedmoe.runs.prepare import prepare

PLENTY = 10**10


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    home = tmp_path_factory.mktemp("node")
    write_sums(home, 6, 6)
    path = home / "node.yaml"
    path.write_text(
        f"""\
rounds: 2
model: {{path: {tiny_folder}, device: cpu}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
budget: {{name: auto, tiers: {{wide: {{share: 0.5}}, slim: {{share: 0.5, most_top_k: 2}}}}}}
training: {{steps: 1, batch_size: 4, probe_examples: 4}}
"""
    )
    return path


@pytest.fixture
def machine(monkeypatch):
    """A stand-in for this machine, whose free memory a test can set; nothing is timed."""
    free = {"bytes": PLENTY}

    def probed(device, link=None):
        return Machine("test", free["bytes"], PLENTY, False, 1, link=link)

    monkeypatch.setattr(planning, "probe", probed)
    constants = Constants(seconds_per_flop=1e-9)
    free["measured"] = OwnBudget._measured
    free["calibrations"] = 0

    def measured(*_):
        free["calibrations"] += 1
        return constants, None

    monkeypatch.setattr(OwnBudget, "_measured", measured)
    return free


def task_of(run, top_k=4, tier="wide", round=1):
    state = run.server.first_state()
    client = next(m.client for m in run.server.members if m.tier == tier)
    return Task(
        round, client, tier, top_k, state.rescalers[tier], run.server.send(state.adapter, tier)
    )


def started(config, *overrides):
    e = load_experiment(config, overrides)
    assert isinstance(e.budget, Auto)
    return prepare(planned_here(e), on_nodes=True), OwnBudget(e.budget)


def top_k_of(message):
    return json.loads(message.scalars)["top_k"]


def between(run, own, task, fewer):
    """Free memory that fits `fewer` experts and not one more."""
    options = own._plan(run.client, task, Constants(seconds_per_flop=1e-9)).options
    need = [option.memory.above_weights for option in options]
    return int((need[fewer - 1] + need[fewer]) / 2 / own.budget.memory_share)


def test_server_and_node_agree_on_clients_tiers_and_the_most_they_may_use(config, machine):
    server = prepare(load_experiment(config, []), on_nodes=True)
    node, _ = started(config)
    assert server.setup.top_ks == node.setup.top_ks == {"wide": 4, "slim": 2}
    assert server.server.members == node.server.members
    assert isinstance(server.setup.experiment.budget, Auto), "it is what nodes are sent"


def test_it_does_what_it_is_asked_where_that_fits(config, machine):
    run, own = started(config)
    message = own.answer(run.client, task_of(run))
    assert top_k_of(message) == 4
    assert bytes(message.buffer) == bytes(run.client.answer(task_of(run)).buffer)


def test_memory_that_is_gone_lowers_k_at_once_and_room_raises_it_after_a_while(config, machine):
    run, own = started(config)
    task = task_of(run)
    found = [top_k_of(own.answer(run.client, task))]
    machine["bytes"] = between(run, own, task, 2)
    found.append(top_k_of(own.answer(run.client, task)))
    machine["bytes"] = PLENTY
    found += [top_k_of(own.answer(run.client, task)) for _ in range(4)]
    assert found == [4, 2, 2, 3, 3, 4]
    assert machine["calibrations"] == 1


def test_the_server_takes_an_update_of_fewer_experts(config, machine):
    run, own = started(config)
    task = task_of(run)
    machine["bytes"] = between(run, own, task, 1)
    assert run.server.read(own.answer(run.client, task), task).top_k == 1


def test_what_ran_out_of_memory_is_not_tried_again(config, machine, monkeypatch):
    run, own = started(config)
    train = preparing.train_client

    def starved(model, rows, pad, task, *others):
        if task.top_k > 2:
            raise torch.OutOfMemoryError
        tried.append(task.top_k)
        return train(model, rows, pad, task, *others)

    tried = []
    monkeypatch.setattr(preparing, "train_client", starved)
    assert [top_k_of(own.answer(run.client, task_of(run))) for _ in range(5)] == [2] * 5
    (seat,) = own.clients.values()
    assert seat.standing is not None
    assert seat.standing.ceiling == 2


@pytest.fixture
def steps(machine, monkeypatch):
    """Steps of a machine that runs out of memory above `most` experts; nothing is timed."""
    found = {"most": 2, "error": MemoryError("its process was killed")}

    def measure(step, setting, repeats, device, weight_bytes):
        if setting.top_k > found["most"]:
            raise found["error"]
        return Sample(setting, 10**6 * setting.top_k, 0.01, 0.01)

    monkeypatch.setattr(planning, "measure", measure)
    monkeypatch.setattr(OwnBudget, "_measured", machine["measured"])
    return found


@pytest.mark.parametrize(
    "error", [MemoryError("its process was killed"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_what_cannot_even_be_measured_is_not_trained_with(config, steps, error, caplog):
    steps["error"] = error
    run, own = started(config)
    task = task_of(run)
    assert [top_k_of(own.answer(run.client, task)) for _ in range(4)] == [2] * 4
    assert own.clients[task.client].standing.ceiling == 2
    assert f"client {task.client}, calibration, ran out of memory with k = 3" in caplog.text


def test_where_not_one_expert_can_be_measured_it_sits_out_until_one_can(config, steps):
    run, own = started(config)
    task = task_of(run)
    steps["most"] = 0
    with pytest.raises(
        FedMoEError, match=r"is skipped in this round: memory ran out in its calibration.*killed"
    ):
        own.answer(run.client, task)
    steps["most"] = 4
    assert top_k_of(own.answer(run.client, task)) == 4


def test_another_fault_of_a_step_is_raised_as_it_is(config, steps):
    steps["error"] = ModelError("a shape")
    run, own = started(config)
    with pytest.raises(ModelError, match="a shape"):
        own.answer(run.client, task_of(run))


def test_where_nothing_fits_it_sits_out_and_says_why(config, machine):
    run, own = started(config)
    machine["bytes"] = 0
    with pytest.raises(FedMoEError, match=r"client \d is skipped in this round: .*0\.00 GB"):
        own.answer(run.client, task_of(run))


def test_a_slow_link_and_a_deadline_count(config, machine):
    task_seconds = "budget.deadline_seconds=10"
    run, own = started(config, task_seconds, "budget.uplink_bytes_per_second=1e9")
    assert top_k_of(own.answer(run.client, task_of(run))) == 4
    run, own = started(config, task_seconds, "budget.uplink_bytes_per_second=100")
    with pytest.raises(FedMoEError, match="over the deadline of 10 s"):
        own.answer(run.client, task_of(run))


def between_times(run, own, task):
    """Seconds in which a round with two experts ends, and one with three does not."""
    plan = own._plan(run.client, task, Constants(seconds_per_flop=1e-9))
    found = [option.seconds for option in plan.options]
    return (found[1] + found[2]) / 2


def test_the_servers_deadline_counts_for_this_round_alone(config, machine):
    run, own = started(config)
    task = task_of(run)
    seconds = between_times(run, own, task)
    deadlines = [1e6, seconds, 1e6, seconds, None]
    assert [top_k_of(own.answer(run.client, task, s)) for s in deadlines] == [4, 2, 4, 2, 4]
    with pytest.raises(
        FedMoEError, match=r"is skipped in this round: .*over the deadline of 1e-09 s"
    ):
        own.answer(run.client, task, 1e-9)
    assert top_k_of(own.answer(run.client, task, 1e6)) == 4


def test_of_the_servers_deadline_and_the_experiments_the_shorter_counts(config, machine):
    run, own = started(config)
    seconds = between_times(run, own, task_of(run))
    run, own = started(config, f"budget.deadline_seconds={seconds}")
    assert top_k_of(own.answer(run.client, task_of(run), 1e6)) == 2
    with pytest.raises(FedMoEError, match="over the deadline of 1e-09 s"):
        own.answer(run.client, task_of(run), 1e-9)


FIXED = "'budget={tiers: {wide: {share: 0.5, top_k: 4}, slim: {share: 0.5, top_k: 2}}}'"


@pytest.fixture
def ordered(config, machine):
    """This process's answer to an order, with dotted overrides."""
    resident.cache_clear()
    run, _ = started(config)
    packed = pack_task(task_of(run))

    def ask(overrides, **changes):
        order = Order(config.read_text(), overrides, packed.scalars, None, [], "", **changes)
        return carry_out(order, memoryview(packed.buffer))

    yield ask
    resident.cache_clear()


def test_a_deadline_changes_no_bit_where_nothing_is_planned(ordered):
    plain, short = (ordered(FIXED, deadline_seconds=seconds) for seconds in (None, 1e-9))
    assert bytes(plain.buffer) == bytes(short.buffer)
    with pytest.raises(FedMoEError, match="over the deadline of 1e-09 s"):
        ordered("", deadline_seconds=1e-9)


def test_a_task_that_cost_workers_for_memory_is_done_with_fewer_and_so_are_the_next(ordered):
    found = [top_k_of(ordered(FIXED, fewer=n)) for n in (0, 1, 0, 2, 0)]
    assert found == [4, 3, 3, 2, 2]
    assert [top_k_of(ordered("", fewer=n)) for n in (2, 0, 0, 0)] == [2] * 4, "planned"


def test_before_the_model_is_loaded_its_batch_is_made_to_fit(config, machine):
    e = load_experiment(config, [])
    roomy = planned_here(e)
    machine["bytes"] = 10**8
    tight = planned_here(e)
    assert roomy.budget.tiers["wide"].batch_size == 4
    assert tight.budget.tiers["wide"].batch_size < 4
    assert tight.budget.tiers["slim"].top_k == 2
    machine["bytes"] = 0
    with pytest.raises(ConfigError, match="sits out"):
        planned_here(e)


def test_a_fixed_budget_is_left_alone(config, machine):
    fixed = load_experiment(config, ["budget={name: levels}"])
    assert planned_here(fixed) is fixed
    assert replace(fixed) == fixed


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_few_real_steps_calibrate_it(config, machine):
    run, own = started(config)
    found, ran_out_at = machine["measured"](own, run.client, task_of(run))
    assert ran_out_at is None
    assert found.seconds_per_step + found.seconds_per_flop > 0
    assert own._plan(run.client, task_of(run), found).top_k == 4

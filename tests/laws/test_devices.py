"""Laws of virtual devices: what a round takes, the same on every machine, and who is reachable."""

import io
import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sides import changed

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.devices import Device
from fedmoe.devices.clock import client_time, probe_tokens, virtual_bytes_up, virtual_time
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.progress.table import LiveTable
from fedmoe.report.ledger import read_ledger
from fedmoe.rounds import Member, ServerState, plan_round, run_rounds
from fedmoe.runs.costs import expected_time, memory_warnings
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.runs.recorder import Recorder
from fedmoe.seeds import numpy_rng
from fedmoe.training import client as training_client
from fedmoe.training.settings import Training

LAYOUT = Layout.of([("a.A", (2, 3), 0), ("q.A", (4,), None)], 1, 2, 1, 1.0)
DEVICE = Device(
    peak_flops=8e9,
    utilisation=0.5,
    memory_bytes=10**9,
    downlink_bytes_per_second=1e6,
    uplink_bytes_per_second=2.5e5,
    latency_seconds=0.25,
)
amounts = st.floats(0, 1e15)


def first_state():
    return ServerState(0, Adapter(LAYOUT, torch.zeros(LAYOUT.size)), {"all": torch.ones(1)})


def members_of(*availabilities):
    return [Member(c, "all", 1, p) for c, p in enumerate(availabilities)]


def test_a_round_by_hand():
    time = virtual_time(DEVICE, bytes_down=3_000_000, flops=2e10, bytes_up=500_000)
    assert (time.latency, time.down, time.compute, time.up) == (0.25, 3.0, 5.0, 2.0)
    assert time.seconds == 10.25


@given(amounts, amounts, amounts)
def test_the_seconds_are_the_formula_in_exact_arithmetic(down, flops, up):
    time = virtual_time(DEVICE, bytes_down=down, flops=flops, bytes_up=up)
    exact = Fraction(1, 4) + Fraction(down) / 10**6 + Fraction(flops) / (4 * 10**9)
    exact += Fraction(up) / 250_000
    assert time.seconds == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("better", ["peak_flops", "utilisation", "uplink_bytes_per_second"])
def test_a_better_device_takes_less_time(better):
    figures = {"bytes_down": 10**6, "flops": 1e9, "bytes_up": 10**6}
    faster = replace(DEVICE, **{better: 1.5 * getattr(DEVICE, better)})
    assert virtual_time(faster, **figures).seconds < virtual_time(DEVICE, **figures).seconds


@given(st.floats(1e-9, 1e6), st.floats(0, 50), st.integers(1, 2**45))
def test_how_long_the_simulation_took_does_not_reach_the_clock(seconds, loss, peak):
    """The whole message does change its length: its scalars are text."""
    counts = torch.tensor([[4, 6]])
    task = Task(1, 0, "all", 1, torch.ones(1), first_state().adapter)
    plain = Update(
        round=1,
        client=0,
        tier="all",
        top_k=1,
        rescaler=torch.ones(1),
        delta=task.adapter,
        counts=counts,
        examples=2,
        tokens=10,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=1.0,
        peak_bytes=1,
    )
    plain = replace(plain, metrics={"wall": 1.0})
    measured = {"seconds": seconds, "loss_after": loss, "peak_bytes": peak}
    other = replace(plain, **measured, metrics={"wall": seconds})
    sizes = [unpack_update(pack_update(u), LAYOUT, task) for u in (plain, other)]
    assert virtual_bytes_up(sizes[0]) == virtual_bytes_up(sizes[1])
    assert 0 < sizes[1].num_bytes - virtual_bytes_up(sizes[1]) < 150


@given(st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 12))
def test_where_all_are_reachable_the_samples_are_as_they_were_without_devices(seed, number, count):
    members = members_of(*[1.0] * 9)
    tasks = plan_round(replace(first_state(), round=number), members, count, seed)
    rng = numpy_rng(seed, "round", number + 1, "sample")
    chosen = rng.choice(9, size=min(count, 9), replace=False)
    assert [task.client for task in tasks] == sorted(chosen.tolist())


def test_clients_are_reachable_as_often_as_their_device_says():
    members = members_of(1.0, 0.75, 0.25, 1e-9)
    seen = [0] * 4
    for number in range(2000):
        tasks = plan_round(replace(first_state(), round=number), members, 4, 7)
        for task in tasks:
            seen[task.client] += 1
    assert seen[0] == 2000
    assert seen[1:3] == pytest.approx([1500, 500], abs=80)  # four standard deviations
    assert seen[3] == 0


@given(st.integers(0, 2**40), st.integers(0, 99))
def test_a_client_that_is_reachable_stays_so_when_its_availability_rises(seed, number):
    def there(low):
        state = replace(first_state(), round=number)
        return {t.client for t in plan_round(state, members_of(*[low] * 12), 12, seed)}

    assert there(0.3) <= there(0.6) <= there(1.0)


def test_a_round_with_nobody_there_is_empty_and_the_run_goes_on():
    heard, shown = [], io.StringIO()
    live = LiveTable(num_rounds=3, workers=1, console=Console(file=shown))

    def transport(tasks):
        heard.append(len(tasks))
        return iter([Failure(t.round, t.client, "off") for t in tasks])

    state = run_rounds(
        first_state(),
        members_of(1e-9, 1e-9),
        Flame(),
        transport,
        [live],
        num_rounds=3,
        clients_per_round=2,
        seed=0,
    )
    assert (state.round, heard) == (3, [0, 0, 0])
    assert "round 2/3: 0 of 0 clients" in shown.getvalue()
    assert state.adapter.digest() == first_state().adapter.digest()


@pytest.fixture(scope="module")
def experiment(tiny_folder, tmp_path_factory):
    """Four clients on two devices, two rounds."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"say {'la ' * (i % 5)}{i}", "response": f"ok {i}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    slow = replace(DEVICE, peak_flops=1e8, label="slow")
    return Experiment(
        seed=3,
        rounds=2,
        model=ModelSettings(path=str(tiny_folder)),
        adapter=LoRA(rank=2),
        data=LocalFiles(path=str(path)),
        partition=Iid(num_clients=4),
        budget=Levels(tiers={"a": Tier(top_k=4), "b": Tier(top_k=1)}),
        devices={"a": DEVICE, "b": slow},
        evaluation=EvaluationSettings(every=0),
        training=Training(steps=2, batch_size=3, probe_examples=4),
    )


@pytest.fixture(scope="module")
def prepared(experiment):
    return prepare(experiment)


def ledger_of(prepared, folder):
    folder.mkdir()
    recorder = Recorder(folder, prepared.server)
    run_rounds(
        prepared.server.first_state(),
        prepared.server.members,
        prepared.setup.experiment.aggregation,
        InProcess(prepared.server, prepared.scorer),
        [recorder],
        num_rounds=2,
        clients_per_round=4,
        seed=3,
    )
    recorder.close()
    return read_ledger(folder / "ledger.jsonl")


def test_the_virtual_seconds_follow_from_the_ledger_alone_and_repeat_to_the_bit(prepared, tmp_path):
    header, *lines = ledger_of(prepared, tmp_path / "one")
    again = ledger_of(prepared, tmp_path / "two")[1:]
    clients = [x for x in lines if x["kind"] == "client"]
    assert len(clients) == 8
    for line in clients:
        device = Device(**header["tiers"][line["tier"]]["device"])
        assert line["virtual_seconds"] == client_time(device, line).seconds
    clock = 0.0
    for end in (x for x in lines if x["kind"] == "round"):
        slowest = max(x["virtual_seconds"] for x in clients if x["round"] == end["round"])
        clock += slowest
        assert (end["virtual_seconds"], end["virtual_clock"]) == (slowest, clock)
    keys = ("virtual_seconds", "virtual_clock", "virtual_bytes_up", "probe_flops")
    assert [[x.get(k) for k in keys] for x in lines] == [[x.get(k) for k in keys] for x in again]
    walls = [[x["seconds"] for x in run if x["kind"] == "client"] for run in (lines, again)]
    assert walls[0] != walls[1]


def test_without_devices_the_ledger_says_nothing_of_virtual_time(prepared, experiment, tmp_path):
    plain = changed(prepared, experiment=replace(experiment, devices={}))
    text = json.dumps(ledger_of(plain, tmp_path / "plain"))
    assert "virtual" not in text
    assert "device" not in text


def test_a_failed_client_is_not_waited_for(prepared, tmp_path):
    (tmp_path / "run").mkdir()
    recorder = Recorder(tmp_path / "run", prepared.server)
    tasks = plan_round(prepared.server.first_state(), prepared.server.members, 4, 3)
    recorder.planned(tasks)
    for task in tasks:
        if task.tier == "b":
            recorder.answered(task, Failure(task.round, task.client, "off"))
        else:
            recorder.answered(task, prepared.server.read(prepared.client.answer(task), task))
    recorder.finished(replace(prepared.server.first_state(), round=1))
    recorder.planned([])  # nobody was reachable
    recorder.finished(replace(prepared.server.first_state(), round=2))
    recorder.close()
    lines = read_ledger(tmp_path / "run" / "ledger.jsonl")
    known = [x["virtual_seconds"] for x in lines if x["kind"] == "client" and x["tier"] == "a"]
    first, second = (x for x in lines if x["kind"] == "round")
    assert first["virtual_seconds"] == first["virtual_clock"] == max(known)
    assert (second["virtual_seconds"], second["virtual_clock"]) == (0.0, max(known))


def test_the_probes_are_counted_as_training_runs_them(prepared, monkeypatch):
    tokens = []
    measured = training_client.mean_loss

    def listening(model, rows, *rest):
        tokens.append(sum(len(row.ids) for row in rows))
        return measured(model, rows, *rest)

    monkeypatch.setattr(training_client, "mean_loss", listening)
    for task in plan_round(prepared.server.first_state(), prepared.server.members, 4, 3):
        tokens.clear()
        prepared.client.train(task)
        lengths = [len(row.ids) for row in prepared.client.rows[task.client]]
        assert len(tokens) == 2
        assert probe_tokens(lengths, prepared.setup.training.probe_examples) == sum(tokens)


def test_the_plan_expects_what_a_run_then_takes(prepared, tmp_path):
    from fedmoe.runs.costs import tier_costs

    lines = [x for x in ledger_of(prepared, tmp_path / "run") if x["kind"] == "client"]
    for tier, price in tier_costs(prepared.server).items():
        expected = [
            expected_time(prepared.server, m.client, tier, price).seconds
            for m in prepared.server.members
            if m.tier == tier
        ]
        taken = [x["virtual_seconds"] for x in lines if x["tier"] == tier]
        assert sum(expected) / len(expected) == pytest.approx(sum(taken) / len(taken), rel=0.1)


def test_too_little_memory_is_said(prepared, experiment):
    assert memory_warnings(prepared.server) == []
    small = {"a": replace(DEVICE, memory_bytes=1000), "b": DEVICE}
    short = changed(prepared, experiment=replace(experiment, devices=small))
    (warning,) = memory_warnings(short.server)
    assert "tier 'a' needs about" in warning
    assert "1.0 kB" in warning

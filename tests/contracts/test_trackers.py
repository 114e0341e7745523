"""Every tracker is told the same numbers, and one that is not installed is an error one can fix."""

import json
import sys
import threading
import time
from typing import get_args

import pytest

from fedmoe.cli.main import main
from fedmoe.errors import FedMoEError
from fedmoe.report import Ledger, read_ledger
from fedmoe.report.trackers import TRACKERS, TrackerName, metrics_of, track

HEAD = {"kind": "run", "name": "small", "num_clients": 2, "tiers": {}}
CLIENT = {
    "kind": "client",
    "round": 1,
    "client": 3,
    "status": "ok",
    "loss_before": 2.0,
    "loss_after": 1.0,
    "seconds": 4.0,
    "tokens": 10,
    "bytes_up": 5,
    "tier": "high",
}
SCORE = {
    "kind": "evaluation",
    "round": 0,
    "split": "test",
    "tier": "k=4, high",
    "loss": None,
    "score": 0.5,
    "metrics": {"exact_match": 0.25},
    "by_label": {},
}
ROUND = {"kind": "round", "round": 1, "seconds": 9.5, "clients": 2, "failed": 0}
END = {"kind": "end", "seconds": 20.0, "phases": {}, "training_share": 0.5, "adapter_sha256": "a"}
TOLD = [
    (0, {"test/k_4_ high/score": 0.5, "test/k_4_ high/exact_match": 0.25}),
    (
        1,
        {
            f"client/3/{n}": float(CLIENT[n])
            for n in ("loss_before", "loss_after", "seconds", "tokens", "bytes_up")
        },
    ),
    (1, {"round/seconds": 9.5, "round/clients": 2.0, "round/failed": 0.0}),
    (1, {"run/seconds": 20.0, "run/training_share": 0.5}),
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\ntraining: {steps: 2}\n")
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in (HEAD, SCORE, CLIENT, ROUND, END):
            ledger.append(record)
    return folder


class Fake:
    """Stands for trackio, mlflow and wandb: keeps what it was told."""

    def __init__(self):
        self.told, self.settings, self.ended = [], {}, 0

    def init(self, project, name, config, **_):
        assert (project, name) == ("fedmoe", "small")
        self.settings = config
        return self

    def log(self, metrics, step):
        self.told.append((step, metrics))

    def finish(self):
        self.ended += 1

    def set_tracking_uri(self, uri):
        assert uri.startswith("sqlite:///")

    def set_experiment(self, name):
        assert name == "fedmoe"

    def start_run(self, run_name):
        assert run_name == "small"

    def log_params(self, settings):
        self.settings = settings

    log_metrics, end_run = log, finish


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    for name in ("trackio", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, made)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_every_tracker_has_a_name_and_every_name_a_tracker():
    assert set(TRACKERS) == set(get_args(TrackerName))


@pytest.mark.parametrize("name", ["trackio", "mlflow", "wandb"])
def test_a_tracker_is_told_all_numbers_by_round(run, fake, name):
    before = (run / "ledger.jsonl").read_bytes()
    assert track(run, name) == sum(len(metrics) for _, metrics in TOLD)
    assert fake.told == TOLD
    assert fake.settings == {"seed": "1", "training.steps": "2"}
    assert fake.ended == 1
    assert (run / "ledger.jsonl").read_bytes() == before


def test_tensorboard_reads_them_back(run, capsys):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["track", str(run)]) == 0
    assert "12 values exported to tensorboard" in capsys.readouterr().out
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = {
        (point.step, name): point.value
        for name in events.Tags()["scalars"]
        for point in events.Scalars(name)
    }
    assert found == {(step, n): v for step, metrics in TOLD for n, v in metrics.items()}


def test_a_tracker_that_is_not_installed_is_said(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)  # makes its import fail
    assert main(["track", str(run), "--to", "trackio"]) == 2
    error = capsys.readouterr().err
    assert "pip install trackio" in error
    assert "Traceback" not in error


def test_a_folder_without_a_run_is_said(tmp_path, fake):
    with pytest.raises(FedMoEError, match=r"ledger\.jsonl: cannot be read"):
        track(tmp_path, "trackio")


def test_a_tracker_is_closed_also_when_it_fails(run, fake, monkeypatch):
    monkeypatch.setattr(fake, "log", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        track(run, "wandb")
    assert fake.ended == 1


def test_a_run_at_work_is_followed_to_its_end(run, fake):
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:2]))
    follower = threading.Thread(
        target=track, args=(run, "trackio"), kwargs={"follow": True}, daemon=True
    )
    follower.start()
    deadline = time.monotonic() + 30
    while not fake.told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.told == TOLD[:1]
    with (run / "ledger.jsonl").open("a") as file:
        file.write("".join(lines[2:]))
    follower.join(30)
    assert fake.told == TOLD
    assert fake.ended == 1


@pytest.mark.parametrize("num_clients", [2, 500])
def test_own_metrics_are_told_of_few_clients_and_always_as_a_mean(run, fake, num_clients):
    lines = [HEAD | {"num_clients": num_clients}]
    lines += [CLIENT | {"client": c, "metrics": {"norm": float(c)}} for c in (1, 2, 6)]
    lines += [CLIENT | {"client": 7}, ROUND, ROUND | {"round": 2}, END]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    track(run, "trackio")
    told = {
        (step, name): value
        for step, metrics in fake.told
        for name, value in metrics.items()
        if "norm" in name
    }
    each = {(1, f"client/{c}/metrics/norm"): c for c in (1, 2, 6)} if num_clients == 2 else {}
    assert told == each | {(1, "round/metrics/norm"): 3.0}


def test_of_many_clients_there_are_no_curves(run, fake):
    lines = (run / "ledger.jsonl").read_text().replace('"num_clients": 2', '"num_clients": 500')
    (run / "ledger.jsonl").write_text(lines)
    track(run, "trackio")
    assert not any(name.startswith("client/") for _, metrics in fake.told for name in metrics)
    failed = read_ledger(run / "ledger.jsonl")[2] | {"status": "failed"}
    assert metrics_of(failed, clients=True) == {}


def test_a_ledger_that_was_cut_back_is_taken_up_from_there(run, monkeypatch):
    from fedmoe.report import ledger

    lost, again = CLIENT | {"client": 1}, CLIENT | {"client": 2}
    resumed = {"kind": "resumed", "round": 1}
    states = [[HEAD, SCORE, CLIENT, lost], [HEAD, SCORE, CLIENT, resumed, again, END]]
    monkeypatch.setattr(ledger, "read_ledger", lambda _: states.pop(0))
    found = ledger.follow_ledger(run, sleep=lambda _: None)
    told = [r.get("client", r["kind"]) for r in found]
    assert told == ["run", "evaluation", 3, 1, "resumed", 2, "end"]

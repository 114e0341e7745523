"""Own metrics of a local step reach the ledger, the events, the trackers and the report."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fedmoe.config import load_experiment
from fedmoe.progress.table import LiveTable
from fedmoe.report import read_ledger
from fedmoe.report.trackers import metrics_of
from fedmoe.runs import client_side
from fedmoe.runs.session import run


@pytest.fixture
def ran(tmp_path, tiny_folder, monkeypatch):
    """The events and the folder of a run in which client 2's local step reports what none may."""
    rows = [{"prompt": f"what is {a} plus 1", "response": f"{a + 1}"} for a in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.yaml").write_text(
        f"""\
name: own
rounds: 1
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {tmp_path / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 3}}
budget: {{tiers: {{all: {{top_k: 2}}}}}}
training: {{batch_size: 4, steps: 1}}
evaluation: {{every: 0, test_examples: 2}}
simulation: {{folder: {tmp_path / "runs"}}}
"""
    )
    usual = client_side.train_client

    def own_step(*args):
        update = usual(*args)
        value = float("nan") if update.client == 2 else update.client + 0.5
        return replace(update, metrics={"gradient_norm": value})

    monkeypatch.setattr(client_side, "train_client", own_step)
    out = io.StringIO()
    live = LiveTable(num_rounds=1, json=True, console=Console(file=out, width=10**4))
    folder = run(load_experiment(tmp_path / "own.yaml", []), live)
    return [json.loads(line) for line in out.getvalue().splitlines()], folder


def test_own_metrics_reach_all_who_show_a_run_and_nan_is_refused(ran):
    events, folder = ran
    ledger = read_ledger(folder / "ledger.jsonl")
    for lines in (events, ledger):
        clients = [line for line in lines if line["kind"] == "client"]
        assert [c.get("metrics") for c in clients] == [
            {"gradient_norm": 0.5},
            {"gradient_norm": 1.5},
            None,
        ]
        assert "metric gradient_norm is nan" in clients[2]["reason"]
    line = next(line for line in ledger if line["kind"] == "client")
    assert metrics_of(line, clients=True)["client/0/metrics/gradient_norm"] == 0.5
    (shown,) = [
        text
        for text in (folder / "summary.md").read_text(encoding="utf-8").splitlines()
        if text.startswith("| gradient_norm")
    ]
    assert [cell.strip() for cell in shown.strip("|").split("|")] == [
        "gradient_norm",
        "2",
        "1.000",
        "1.000",
        "0.500",
        "1.500",
    ]

"""Own metrics of a local step reach the ledger, the events, the trackers and the report."""

import io
import json

import pytest
from rich.console import Console

import fedmoe as fm
from fedmoe.progress.table import LiveTable
from fedmoe.report.trackers import metrics_of


def step(client, task):
    """Train one batch; client 2 reports what no update may."""
    for batch in client.batches(1):
        client.loss(batch).backward()
    return {"gradient_norm": float("nan") if task.client == 2 else task.client + 0.5}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The events and the results of one round of three clients."""
    rows = [(f"what is {a} plus 1", f"{a + 1}") for a in range(8)]
    clients = [fm.Client(rows[2 * c : 2 * c + 2], tier="all") for c in range(3)]
    tiers, training = {"all": fm.Tier(top_k=1)}, fm.Training(steps=1, batch_size=2)
    out = io.StringIO()
    live = LiveTable(num_rounds=1, json=True, console=Console(file=out, width=10**4))
    fed = fm.Federation(
        "mini", clients, tiers=tiers, training=training, test=rows[6:], local=step, rounds=1
    )
    results = fed.run(tmp_path_factory.mktemp("own"), display=live)
    return [json.loads(line) for line in out.getvalue().splitlines()], results


def test_own_metrics_reach_the_events_and_the_ledger_and_nan_is_refused(ran):
    events, results = ran
    for lines in (events, results.ledger):
        clients = [line for line in lines if line["kind"] == "client"]
        found = [line.get("metrics") for line in clients]
        assert found == [{"gradient_norm": 0.5}, {"gradient_norm": 1.5}, None]
        assert "metric gradient_norm is nan" in clients[2]["reason"]


def test_own_metrics_reach_the_trackers_and_the_report(ran):
    _, results = ran
    line = next(line for line in results.ledger if line["kind"] == "client")
    assert metrics_of(line, clients=True)["client/0/metrics/gradient_norm"] == 0.5
    lines = (results.folder / "summary.md").read_text(encoding="utf-8").splitlines()
    (row,) = [text for text in lines if text.startswith("| gradient_norm")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["gradient_norm", "2", "1.000", "1.000", "0.500", "1.500"]

"""Nineteen owners' real files on three SuperNodes: the folder's bits, and a server that reads none.

Needs the conversations of `shared/data/sgd_chat` beside the checkout; skipped without them.
"""

import os
import shutil
from pathlib import Path

import pytest
from federation import PROJECT, Federation

from fedmoe.config import load_experiment
from fedmoe.messages.rows import RowCounts
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.session import run

OWNERS = PROJECT.parent / "shared/data/sgd_chat"
SPLIT = (7, 6, 6)
"""Owners on each node."""
SETTINGS = (
    "rounds=2 clients_per_round=6 training.steps=4 simulation.workers=1 "
    "evaluation.validation_examples=4 evaluation.test_examples=4 "
    "budget.tiers.high.clients=[Hotels_1,Movies_1]"
)
TRACE = """
import os, sys

def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(os.environ["TRACED"]):
        with_name = os.path.basename(sys.argv[0] if sys.argv else "?")
        line = f"{with_name}\\t{arguments[0]}\\n".encode()
        fd = os.open(os.environ["TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line)
        os.close(fd)

sys.addaudithook(note)
"""
"""A `sitecustomize` that writes down which process opens an owner's file."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OWNERS.is_dir(), reason=f"{OWNERS} is not there"),
]


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.stop()


def test_three_nodes_hold_what_the_server_never_opens(federation, tmp_path):
    names = sorted(path.stem for path in OWNERS.glob("*.jsonl"))
    rows_at = tmp_path / "owners"
    rows_at.mkdir()
    for name in names:  # without their tools, which leave a small model's context little room
        shutil.copy(OWNERS / f"{name}.jsonl", rows_at)
    hook, trace = tmp_path / "hook", tmp_path / "opened"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(TRACE)
    paths = [str(hook), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    federation.environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRACED": str(rows_at),
        "TRACE": str(trace),
    }
    federation.superlink()
    for number, size in enumerate(SPLIT):
        first = sum(SPLIT[:number])
        rows = " ".join(f"{name}={rows_at}/{name}.jsonl" for name in names[first : first + size])
        config = f'name="node-{number}" data="{rows}"'
        federation.supernode("--node-config", config, home=federation.home / f"node-{number}")
    there = federation.flwr_run(
        config="configs/federated.yaml", overrides=SETTINGS, num_nodes=3, node_seconds=300
    )
    path = f"data.path={rows_at}"
    folder = f"simulation.folder={tmp_path / 'here'}"
    e = load_experiment(PROJECT / "configs/federated.yaml", [*SETTINGS.split(), path, folder])
    here = read_ledger(run(e) / "ledger.jsonl")
    assert there[-1]["adapter_sha256"] == here[-1]["adapter_sha256"]
    assert scores(there) == scores(here)
    for record in (r for r in there if r["kind"] == "rows"):
        lines = (OWNERS / f"{record['name']}.jsonl").read_text("utf-8").count("\n")
        assert RowCounts(**record["rows"]).read == lines
    assert {r["name"] for r in there if r["kind"] == "rows"} == {*names}
    opened = [line.split("\t") for line in trace.read_text().splitlines()]
    processes = {process for process, _ in opened}
    assert not [p for p in processes if "server" in p or "superlink" in p], processes
    assert {Path(path).stem for _, path in opened} >= {*names}


def scores(records):
    found = [r for r in records if r["kind"] == "evaluation"]
    return [(r["round"], r["split"], r["tier"], r["loss"], r["clients"]) for r in found]

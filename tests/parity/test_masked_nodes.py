"""Four owners' SuperNodes over TLS, masked and private, one killed in the middle of a round."""

import os
import signal
import time

import pytest
import torch
from ports import free_ports
from safetensors.torch import load_file

from fedmoe.cli.main import main
from fedmoe.report.ledger import read_ledger
from simulations.rehearsal.deployment import Deployment

CONFIG = "configs/deploy/rehearsal.yaml"
SETTINGS = (
    "rounds=3",
    "training.steps=8",
    "secure_aggregation={threshold: .51}",
    "privacy={epsilon: 300, delta: 1e-2, clip: .05, noise_multiplier: 1, sampling: known}",
    "aggregation={name: fedavg, weighting: uniform}",
)
SECONDS = 1500
"""Far more than it takes, on a machine that has much else to do, too."""
TRAINING = "have exchanged keys and train"

pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(tmp_path):
    superlink, *nodes = free_ports(5)
    options = (f"--server=127.0.0.1:{superlink}", f"--node-port={nodes[0]}", "--config", CONFIG)
    clients = ("--clients", "a=high,b=low,c=low,d=lowest")
    assert main(["deploy", "init", str(tmp_path / "fleet"), *options, *clients, *SETTINGS]) == 0
    made = Deployment(tmp_path / "fleet", tmp_path / "state")
    yield made
    made.stop()


def test_masked_and_private_on_supernodes_with_a_kill(deployment):
    deployment.start(SECONDS)
    deployment.submit()
    log, end = deployment.state / "submitted.log", time.monotonic() + SECONDS

    def wait_for(met, what):
        while not met():
            said = log.read_text(errors="replace")
            assert time.monotonic() < end, f"{what}: {said[-3000:]}"
            assert deployment.submitted.poll() is None or met(), f"{what}: {said[-3000:]}"
            time.sleep(0.1)

    wait_for(lambda: log.read_text(errors="replace").count(TRAINING) >= 2, "round 2")
    victim = deployment.clients["b"]
    # Its worker has the keys, and the task is on its way or at work.
    for pid in victim.pids("worker"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: deployment.submitted.poll() is not None, "the end")
    said = log.read_text(errors="replace")
    (run,) = (deployment.server.state / "work/runs").glob("[!.]*")
    ledger = read_ledger(run / "ledger.jsonl")
    assert ledger[-1]["kind"] == "end", said[-3000:]
    clients = [line for line in ledger if line["kind"] == "client"]
    failed = [(c["round"], c["client"]) for c in clients if c["status"] == "failed"]
    assert failed == [(2, 1)]
    assert len(clients) == 12
    (reason,) = (c["reason"] for c in clients if c["status"] == "failed")
    assert "has no keys for this step" in reason
    hidden = {"examples", "loss_before", "loss_after", "tokens", "seconds", "steps"}
    assert not any(hidden & {*line} for line in clients)
    lines = [line for line in ledger if line["kind"] == "private"]
    spent = [line["epsilon"] for line in lines if line.get("charged", True)]
    assert 0 < spent[0] < spent[1] < spent[2] <= 300
    adapter = load_file(run / "adapter-last.safetensors")
    assert all(values.isfinite().all() for values in adapter.values())
    assert any(torch.count_nonzero(values) for values in adapter.values())
    for sentence in ("the server sees sums alone", "privacy: 3 rounds spend epsilon", "withheld"):
        assert sentence in said
    assert "do not sign" not in said

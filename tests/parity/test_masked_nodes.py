"""Four owners on SuperNodes over TLS, whose sums are masked; some are killed within a round."""

import os
import signal
import time

import pytest
import torch
from ports import free_ports
from safetensors.torch import load_file

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.report.ledger import read_ledger
from fedmoe.rounds import finish_round, plan_round
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.runs.saved_adapter import read_adapter
from simulations.rehearsal.deployment import Deployment

CONFIG = "configs/deploy/rehearsal.yaml"
MASKED = ("training.steps=8", "secure_aggregation={threshold: .51}")
PRIVATE = (
    "privacy={epsilon: 300, delta: 1e-2, clip: .05, noise_multiplier: 1, sampling: known}",
    "aggregation={name: fedavg, weighting: uniform}",
)
SECONDS = 1500
"""Far more than it takes, on a machine that has much else to do, too."""
TRAINING = "have exchanged keys and train"

pytestmark = pytest.mark.slow


class Fleet(Deployment):
    """A deployment whose run is followed by its log."""

    def begin(self):
        self.end = time.monotonic() + SECONDS
        self.start(SECONDS)
        self.submit()

    @property
    def said(self):
        return (self.state / "submitted.log").read_text(errors="replace")

    def wait_for(self, met, what):
        while not met():
            assert time.monotonic() < self.end, f"{what}: {self.said[-3000:]}"
            assert self.submitted.poll() is None or met(), f"{what}: {self.said[-3000:]}"
            time.sleep(0.1)

    def train_in(self, round):
        """Wait until a round's clients have keys: their tasks are on their way, or at work."""
        self.wait_for(lambda: self.said.count(TRAINING) >= round, f"round {round}")

    def finished(self):
        """Wait for the end; the run's folder and the lines of its clients."""
        self.wait_for(lambda: self.submitted.poll() is not None, "the end")
        (run,) = (self.server.state / "work/runs").glob("[!.]*")
        ledger = read_ledger(run / "ledger.jsonl")
        assert ledger[-1]["kind"] == "end", self.said[-3000:]
        return run, [line for line in ledger if line["kind"] == "client"]


@pytest.fixture
def fleet(tmp_path):
    made = []

    def begun(*settings):
        superlink, *nodes = free_ports(5)
        where = (f"--server=127.0.0.1:{superlink}", f"--node-port={nodes[0]}")
        clients = ("--config", CONFIG, "--clients", "a=high,b=low,c=low,d=lowest")
        folder = str(tmp_path / "fleet")
        assert main(["deploy", "init", folder, *where, *clients, *MASKED, *settings]) == 0
        app = tmp_path / "fleet/server/app/pyproject.toml"
        text = app.read_text("utf-8")
        assert "\nnode_seconds = " in text
        app.write_text(text.replace("\nnode_seconds = ", f"\nnode_seconds = {SECONDS} # "))
        made.append(Fleet(tmp_path / "fleet", tmp_path / "state"))
        made[0].begin()
        return made[0]

    yield begun
    for deployment in made:
        deployment.stop()


def failures(clients):
    return {(c["round"], c["client"]): c["reason"] for c in clients if c["status"] == "failed"}


def test_masked_and_private_while_a_worker_and_a_whole_supernode_are_killed(fleet):
    deployed = fleet("rounds=3", *PRIVATE)
    deployed.train_in(2)
    for pid in deployed.clients["b"].pids("worker"):
        os.kill(pid, signal.SIGKILL)
    deployed.train_in(3)
    deployed.clients["c"].stop(signal.SIGKILL)
    run, clients = deployed.finished()
    failed = failures(clients)
    assert [*failed] == [(2, 1), (3, 2)]
    assert len(clients) == 12
    assert "has no keys for this step" in failed[2, 1]
    hidden = {"examples", "loss_before", "loss_after", "tokens", "seconds", "steps"}
    assert not any(hidden & {*line} for line in clients)
    lines = [line for line in read_ledger(run / "ledger.jsonl") if line["kind"] == "private"]
    spent = [line["epsilon"] for line in lines if line.get("charged", True)]
    assert 0 < spent[0] < spent[1] < spent[2] <= 300
    adapter = load_file(run / "adapter-last.safetensors")
    assert all(values.isfinite().all() for values in adapter.values())
    assert any(torch.count_nonzero(values) for values in adapter.values())
    for sentence in ("the server sees sums alone", "privacy: 3 rounds spend epsilon", "withheld"):
        assert sentence in deployed.said
    assert "do not sign" not in deployed.said


def test_a_round_in_which_a_supernode_dies_ends_with_the_clear_sum_of_the_rest(fleet):
    deployed = fleet("rounds=1")
    deployed.train_in(1)
    deployed.clients["c"].stop(signal.SIGKILL)
    run, clients = deployed.finished()
    assert [*failures(clients)] == [(1, 2)]
    e = load_experiment(
        deployed.folder / "server/app/configs/experiment.yaml",
        ["secure_aggregation=null", "robust={name: none}", f"simulation.folder={run.parent}"],
    )
    prepared = prepare(e)
    server, state = prepared.server, prepared.server.first_state()
    tasks = plan_round(state, server.members, 4, e.seed, server.send_to)
    staying = [task for task in tasks if task.client != 2]
    updates = InProcess(server, prepared.scorer)(staying)
    clear = finish_round(state, e.aggregation, updates, e.server_optimizer, 4).adapter
    found, _, _ = read_adapter(run / "adapter-last.safetensors", clear.layout)
    torch.testing.assert_close(found.flat, clear.flat, atol=1e-6, rtol=1e-5)
    assert not torch.equal(clear.flat, state.adapter.flat)

"""A deployment of many nodes on this machine, each with its own owner's file, and what it uses."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedmoe.cli.main import main as fedmoe_command
from fedmoe.errors import FedMoEError
from simulations.rehearsal.deployment import Deployment
from simulations.scale.owners import write_rows

SETTINGS = """\
name: nodes
rounds: 3
data: {name: federated}
budget: {default: low, tiers: {high: {top_k: 8}, low: {top_k: 1}}}
training: {steps: 2, batch_size: 4}
evaluation: {every: 0, clients: 10, max_new_tokens: 8, metric: exact_match}
"""
PER_ROUND = 10
"""Of thirty nodes. Without a resident worker a task takes 670 MB while it is at work, and a round's
tasks go out at once: all thirty would take more than 24 GB."""
TASK_SECONDS = 600
"""After which a message that was lost is noticed."""
START_SECONDS = 300.0
PORT = 21480
"""The SuperLink's; the nodes' follow it."""


def make(place: Path, nodes: int) -> Deployment:
    """Make the folder of a deployment with so many owners, each with rows of its own."""
    write_rows(place / "rows", nodes)
    (place / "nodes.yaml").write_text(SETTINGS)
    names = [path.stem for path in sorted((place / "rows").iterdir())]
    tiers = [f"{name}={'high' if n % 2 else 'low'}" for n, name in enumerate(names)]
    paths = [f"--data={name}={place}/rows/{name}.jsonl" for name in names]
    options = [f"--server=127.0.0.1:{PORT}", f"--node-port={PORT + 1}", "--insecure"]
    options.append(f"--config={place}/nodes.yaml")
    words = ["deploy", "init", str(place / "fleet"), *options, f"--clients={','.join(tiers)}"]
    settings = [f"membership.least={nodes}", f"clients_per_round={min(nodes, PER_ROUND)}"]
    if code := fedmoe_command([*words, *paths, *settings]):
        raise FedMoEError(f"`fedmoe deploy init` ended with {code}; see above")
    for script in (place / "fleet/clients").glob("*/supernode.sh"):
        _edit(script, '/clients\\""', '/clients\\" worker_idle_seconds=0"')
    app = place / "fleet/server/app/pyproject.toml"
    _edit(app, "task_seconds = 3600", f"task_seconds = {TASK_SECONDS}")
    # Its SQLite database gave up waiting for its own lock under so many nodes: messages were lost.
    _edit(place / "fleet/server/superlink.sh", '--database "$state/superlink.db"', "")
    return Deployment(place / "fleet", place / "state")


def start(deployment: Deployment) -> None:
    """Start the SuperLink and all SuperNodes, and wait until each has connected.

    Raises:
        FedMoEError: not all have within `START_SECONDS`.
    """
    end = time.monotonic() + START_SECONDS
    deployment.start(START_SECONDS)
    while not all("SuperNode ID" in text for text in logs(deployment)):
        if time.monotonic() > end:
            raise FedMoEError(f"not all nodes have started in {START_SECONDS:g} s")
        time.sleep(1.0)


def logs(deployment: Deployment) -> list[str]:
    """Return what each SuperNode has said so far; nothing for one that has no log yet."""
    paths = [client.state / "log" for client in deployment.clients.values()]
    return [path.read_text(errors="replace") if path.exists() else "" for path in paths]


@dataclass
class Seen:
    """The most that a deployment's processes used at any look."""

    bytes: int = 0
    """Sum of proportional set sizes."""
    processes: int = 0
    by_command: Counter[str] = field(default_factory=Counter)
    """Bytes of each kind of process at the look with the most."""

    def look(self, state: Path) -> None:
        """Look at all processes whose Flower home is in the deployment's state."""
        found: Counter[str] = Counter()
        number = 0
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FLWR_HOME", "").startswith(f"{state}/"):
                    words = {Path(word).name for word in process.cmdline()[:3]}
                    kinds = sorted(w for w in words if w.startswith(("flwr", "flower")))
                    found[kinds[0] if kinds else "worker"] += process.memory_full_info().pss
                    number += 1
        self.processes = max(self.processes, number)
        if (total := found.total()) > self.bytes:
            self.bytes, self.by_command = total, found


def _edit(path: Path, old: str, new: str) -> None:
    """Put other text in place of what a file has once."""
    before = path.read_text(encoding="utf-8")
    assert before.count(old) == 1, (path, old)
    path.write_text(before.replace(old, new), encoding="utf-8")

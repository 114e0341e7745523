"""Thirty SuperNodes on one machine for three rounds, each with its own owner's file.

    python -m simulations.scale.nodes            (fifteen minutes on 2 CPU cores; 12 GB)
    python -m simulations.scale.nodes --nodes 3

A loopback folder of `fedmoe deploy init` is made and started as its README says: a SuperLink and a
SuperNode for each owner, in processes. What came of it: `README.md`.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedmoe.cli.main import main as fedmoe_command
from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record, read_ledger
from simulations.rehearsal.deployment import Deployment
from simulations.scale.owners import write_rows

SETTINGS = """\
name: nodes
rounds: 3
data: {name: federated}
budget: {default: low, tiers: {high: {top_k: 4}, low: {top_k: 1}}}
training: {steps: 2, batch_size: 4}
evaluation: {every: 0, clients: 10, max_new_tokens: 8}
"""
PER_ROUND = 10
"""Of thirty nodes. A task takes 400 MB without a resident worker, and a round's tasks go out at
once: all thirty would take more than 24 GB."""
TASK_SECONDS = 600
"""After which a message that was lost is noticed."""
START_SECONDS, MOST_SECONDS, LOOK_SECONDS = 300.0, 1800.0, 5.0
PORT = 21480
"""The SuperLink's; the nodes' follow it."""
RECEIVING = re.compile(r"Receiving: (\w+) message")
"""A SuperNode's line about a message."""
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


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
        edit(script, '/clients\\""', '/clients\\" worker_idle_seconds=0"')
    app = place / "fleet/server/app/pyproject.toml"
    edit(app, "task_seconds = 3600", f"task_seconds = {TASK_SECONDS}")
    # Its SQLite database gave up waiting for its own lock under so many nodes: messages were lost.
    edit(place / "fleet/server/superlink.sh", '--database "$state/superlink.db"', "")
    return Deployment(place / "fleet", place / "state")


def edit(path: Path, old: str, new: str) -> None:
    """Put other text in place of what a file has once."""
    before = path.read_text(encoding="utf-8")
    assert before.count(old) == 1, (path, old)
    path.write_text(before.replace(old, new), encoding="utf-8")


def records(deployment: Deployment) -> list[Record]:
    """Return the run's ledger so far."""
    found = [*deployment.server.state.glob("**/ledger.jsonl")]
    return read_ledger(found[0]) if found else []


def logs(deployment: Deployment) -> list[str]:
    """Return what each SuperNode has said so far."""
    paths = [client.state / "log" for client in deployment.clients.values()]
    return [path.read_text(errors="replace") for path in paths if path.exists()]


def carried_out(deployment: Deployment, seen: Seen) -> Iterator[tuple[float, Record]]:
    """Submit the run and yield each line of its ledger, and the time when it was seen."""
    deployment.submit()
    end, number = time.monotonic() + MOST_SECONDS, 0
    while time.monotonic() < end:
        lines = records(deployment)
        yield from ((time.monotonic(), line) for line in lines[number:])
        if (number := len(lines)) and lines[-1]["kind"] == "end":
            return
        seen.look(deployment.state)
        time.sleep(LOOK_SECONDS)
    said = (deployment.state / "submitted.log").read_text(errors="replace")[-2000:]
    raise FedMoEError(f"the run has not ended in {MOST_SECONDS:g} s; see its log:\n{said}")


def measured(deployment: Deployment) -> dict[str, object]:
    """Run the deployment to its end; return what it took."""
    begun, seen = time.monotonic(), Seen()
    lo = int(LOOPBACK.read_text())
    deployment.start(START_SECONDS)
    while not all("SuperNode ID" in text for text in logs(deployment)):
        if time.monotonic() > begun + START_SECONDS:
            raise FedMoEError(f"not all nodes have started in {START_SECONDS:g} s")
        time.sleep(1.0)
    submitted = time.monotonic()
    lines = [*carried_out(deployment, seen)]
    ended = time.monotonic()
    done = [r for _, r in lines if r["kind"] == "client" and r["status"] == "ok"]
    return {
        "nodes": len(deployment.clients),
        "seconds until all were started": submitted - begun,
        "seconds of the run": ended - submitted,
        "seconds by round": [r["seconds"] for _, r in lines if r["kind"] == "round"],
        "updates": len(done),
        "unscored": sum(r["kind"] == "unscored" for _, r in lines),
        "messages by kind": Counter(
            k for text in logs(deployment) for k in RECEIVING.findall(text)
        ),
        "bytes of tasks": sum(r["bytes_down"] for r in done),
        "bytes of updates": sum(r["bytes_up"] for r in done),
        "bytes over loopback": int(LOOPBACK.read_text()) - lo,
        "most processes": seen.processes,
        "most MiB (PSS)": seen.bytes >> 20,
        "of which": {kind: size >> 20 for kind, size in seen.by_command.items()},
    }


def main() -> None:
    """Print the figures of a deployment of so many nodes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=30)
    nodes = parser.parse_args().nodes
    with tempfile.TemporaryDirectory() as place:
        deployment = make(Path(place), nodes)
        try:
            print(json.dumps(measured(deployment), indent=1))
        finally:
            deployment.stop()


if __name__ == "__main__":
    main()

"""Thirty SuperNodes on one machine for three rounds, each with its own owner's file.

    python -m simulations.scale.nodes            (ten minutes on 2 CPU cores; 13 GB)
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
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record, read_ledger
from simulations.rehearsal.deployment import Deployment
from simulations.scale.fleet import Seen, logs, make, start

MOST_SECONDS, LOOK_SECONDS = 1800.0, 5.0
RECEIVING = re.compile(r"Receiving: (\w+) message")
"""A SuperNode's line about a message."""
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def records(deployment: Deployment) -> list[Record]:
    """Return the run's ledger so far."""
    found = [*deployment.server.state.glob("**/ledger.jsonl")]
    return read_ledger(found[0]) if found else []


def carried_out(deployment: Deployment, seen: Seen) -> Iterator[Record]:
    """Submit the run and yield each line of its ledger, up to its end."""
    deployment.submit()
    end, number = time.monotonic() + MOST_SECONDS, 0
    while time.monotonic() < end:
        lines = records(deployment)
        yield from lines[number:]
        if (number := len(lines)) and lines[-1]["kind"] == "end":
            return
        seen.look(deployment.state)
        time.sleep(LOOK_SECONDS)
    said = (deployment.state / "submitted.log").read_text(errors="replace")[-2000:]
    raise FedMoEError(f"the run has not ended in {MOST_SECONDS:g} s; see its log:\n{said}")


def measured(deployment: Deployment) -> dict[str, object]:
    """Run the deployment to its end; return what it took."""
    begun, seen, before = time.monotonic(), Seen(), int(LOOPBACK.read_text())
    start(deployment)
    submitted = time.monotonic()
    lines = [*carried_out(deployment, seen)]
    ended = time.monotonic()
    done = [r for r in lines if r["kind"] == "client" and r["status"] == "ok"]
    kinds = Counter(kind for text in logs(deployment) for kind in RECEIVING.findall(text))
    return {
        "nodes": len(deployment.clients),
        "seconds until all were started": submitted - begun,
        "seconds of the run": ended - submitted,
        "seconds by round": [r["seconds"] for r in lines if r["kind"] == "round"],
        "updates": len(done),
        "unscored": sum(r["kind"] == "unscored" for r in lines),
        "messages by kind": kinds,
        "bytes of tasks": sum(r["bytes_down"] for r in done),
        "bytes of updates": sum(r["bytes_up"] for r in done),
        "bytes over loopback": int(LOOPBACK.read_text()) - before,
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

"""What one SuperLink carries: seconds and processor time per message and per byte, on loopback.

    python -m simulations.scale.link                       (five minutes on 2 CPU cores; 8 GB)
    python -m simulations.scale.link --megabytes 6 60

A SuperLink and two SuperNodes are started from a folder of `fedmoe deploy init`, with a Flower app
that sends arrays of each size to both nodes, and others back. What came of it: `README.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from simulations.rehearsal.deployment import Deployment
from simulations.scale.fleet import make, start

PYPROJECT = """\
[project]
name = "echo"
version = "1.0.0"
description = "Arrays to nodes and back"
dependencies = []
[tool.flwr.app]
publisher = "fedmoe"
[tool.flwr.app.components]
serverapp = "echo_app:server"
clientapp = "echo_app:client"
[tool.flwr.app.config]
pid = 0
nodes = 2
out = ""
sizes = "[]"
"""
MOST_SECONDS = 1500.0


def submitted(deployment: Deployment, place: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Run the app to its end; return what it wrote down."""
    app, out = place / "echo", place / "exchanges.jsonl"
    app.mkdir()
    (app / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(Path(__file__).with_name("echo_app.py"), app)
    (pid,) = deployment.server.pids("SuperLink")
    nodes = len(deployment.clients)
    config = f'pid={pid} nodes={nodes} out="{out}" sizes="{sizes}"'
    words = ("run", str(app), "fleet", "--stream", "--run-config", config)
    process = deployment.flwr.run_with_log(place / "flwr.log", *words)
    end = time.monotonic() + MOST_SECONDS
    while process.poll() is None and time.monotonic() < end:
        time.sleep(1.0)
    found = out.read_text().splitlines() if out.exists() else []
    if len(found) < 1 + len(sizes):
        print((place / "flwr.log").read_text()[-1500:])
    return [json.loads(line) for line in found]


def main() -> None:
    """Print the costs of each size; an exchange that fails ends the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[6, 60, 300, 592])
    parser.add_argument("--nodes", type=int, default=2)
    options = parser.parse_args()
    # The first one installs the app on each node; small ones tell what a message itself costs.
    sizes = [1000, 1000, 1000, *(10**6 * size for size in options.megabytes)]
    with tempfile.TemporaryDirectory() as place:
        deployment = make(Path(place), options.nodes)
        try:
            start(deployment)
            for line in submitted(deployment, Path(place), sizes):
                print(json.dumps(line))
        finally:
            deployment.stop()


if __name__ == "__main__":
    main()

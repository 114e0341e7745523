"""A thousand clients against fifty: whole runs of `configs/many_clients.yaml`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simulations.benchmarks.measure import Options, Row
from simulations.benchmarks.memory import Peak

CONFIG = Path(__file__).parents[2] / "configs/many_clients.yaml"


@dataclass(frozen=True)
class Measured:
    """A whole run, seen from outside."""

    peak_bytes: int
    seconds: float
    per_client: float
    """Wall seconds of the rounds, per client-round."""


def rows(options: Options) -> Iterator[Row]:
    """Yield memory and time of the same data, shared out to 50 and to 1,000 clients."""
    few, many = (measured(clients, options.quick) for clients in (50, 1000))
    grown, slower = many.peak_bytes / few.peak_bytes, many.per_client / few.per_client
    what, note = "1,000 clients against 50", f"{many.peak_bytes / 2**20:,.0f} MiB in all processes"
    yield Row(f"peak memory of {what}", "PSS", f"{grown:.2f}x", "at most 1.1x", grown <= 1.1, note)
    note = f"{few.per_client:.2f} and {many.per_client:.2f} s, {many.seconds:.0f} s in all"
    yield Row(f"client-round of {what}", "wall time", f"{slower:.2f}x", note=note)


def measured(clients: int, quick: bool) -> Measured:
    """Run the config in a separate process and look at its memory twice a second."""
    small = ("rounds=1", "clients_per_round=8", "data.per_domain=400", "training.steps=1")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedmoe.cli.main", "run", str(CONFIG), "--quiet"]
        command += [f"simulation.folder={folder}", f"partition.num_clients={clients}"]
        command += small if quick else ()
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with Peak(process.pid, 0.5) as peak:
            code = process.wait()
        assert code == 0, (code, command)
        seconds = time.monotonic() - started
        (ledger,) = Path(folder).glob("*/ledger.jsonl")
        records = [json.loads(line) for line in ledger.read_text().splitlines()]
    done = [r for r in records if r["kind"] == "round"]
    each = sum(r["seconds"] for r in done) / sum(r["clients"] for r in done)
    return Measured(peak.bytes, seconds, each)

"""The quickstart's first rounds in fedmoe, in Flower's simulation with PEFT, and in a plain loop.

All three train the same clients on the same rows, with the same k, steps, batch size and LoRA, on
the built-in model; the peers keep their model between tasks and evaluate nothing. A rate counts the
rounds alone; memory is that of all processes of a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmoe.config import load_experiment
from fedmoe.models.build import model_folder
from fedmoe.rounds import plan_round
from fedmoe.runs.prepare import prepare
from simulations.benchmarks.measure import Options, Row, named
from simulations.benchmarks.memory import Peak

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/quickstart.yaml"
OURS, FLOWER, PLAIN = "fedmoe", "Flower's simulation with PEFT", "a plain loop with PEFT"
SETTINGS = ("evaluation.every=0", "evaluation.test_examples=1", "evaluation.max_new_tokens=1")


@dataclass(frozen=True)
class Measured:
    """A whole run, seen from outside."""

    rate: float
    """Client-rounds per minute of the rounds."""
    seconds: float
    """Wall time of all, start-up included."""
    peak_bytes: int
    down: float
    """Bytes of a client-round."""
    up: float


def rows(options: Options) -> Iterator[Row]:
    """Yield each system's rate, memory and bytes; then fedmoe's rate against the others'."""
    small = ("training.steps=2", "data.per_domain=40") if options.quick else ()
    overrides = (f"rounds={1 if options.quick else 4}", *SETTINGS, *small)
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(overrides)
        number = sum(map(len, job["rounds"]))
        (path := Path(folder) / "job.json").write_text(json.dumps(job))
        found = {OURS: ours(Path(folder), overrides, number)}
        for name, kind in ((FLOWER, "flower"), (PLAIN, "plain")):
            found[name] = peer(kind, path, number)
    setting = f"quickstart, {len(job['rounds'])} rounds of {len(job['rounds'][0])} clients"
    versions = f"{named('flwr')}, {named('peft')} on grouped_mm, one thread a client"
    for name, it in found.items():
        note = (
            f"{it.peak_bytes / 1e6:,.0f} MB; {it.down / 1e6:.2f} MB down and {it.up / 1e6:.2f} MB"
        )
        note += f" up a client-round; {it.seconds:.0f} s with its start"
        yield Row(name, setting, f"{it.rate:.1f} client-rounds a minute", note=note)
    for name in (FLOWER, PLAIN):
        faster = f"{found[OURS].rate / found[name].rate:.2f}x"
        yield Row(f"rate of fedmoe against {name}", setting, faster, note=versions)


def job_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the quickstart's clients, rows, settings and plan, for the peers."""
    run = prepare(load_experiment(CONFIG, overrides))
    server, e = run.server, run.server.setup.experiment
    state, members = server.first_state(), server.members
    plans = [
        plan_round(replace(state, round=number), members, e.clients_per_round or 0, e.seed)
        for number in range(e.rounds)
    ]
    return {
        "model": str(model_folder(e.model.path)),
        "rank": e.adapter.rank,
        "alpha": e.adapter.alpha,
        "steps": e.training.steps,
        "batch_size": e.training.batch_size,
        "rate": e.training.learning_rate,
        "pad": server.setup.tokenizer.pad_token_id,
        "clients": {
            m.client: (m.top_k, [labelled(row) for row in run.client.rows[m.client]])
            for m in members
        },
        "rounds": [[str(task.client) for task in tasks] for tasks in plans],
    }


def labelled(row: Any) -> tuple[list[int], list[int]]:
    """Return a row's ids and its labels, -100 for what is not learnt."""
    labels = [-100] * len(row.ids)
    for start, end in row.learnt:
        labels[start:end] = row.ids[start:end]
    return list(row.ids), labels


def ours(folder: Path, overrides: Sequence[str], number: int) -> Measured:
    """Run fedmoe's command, and read what its ledger says."""
    command = ["-m", "fedmoe.cli.main", "run", str(CONFIG), "--quiet", *overrides]
    _, seconds, peak = watched([*command, f"simulation.folder={folder / 'runs'}"])
    (ledger,) = (folder / "runs").glob("*/ledger.jsonl")
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    rounds = sum(r["seconds"] for r in records if r["kind"] == "round")
    sent = [(r["bytes_down"], r["bytes_up"]) for r in records if r["kind"] == "client"]
    down, up = (sum(sizes) / number for sizes in zip(*sent, strict=True))
    return Measured(60 * number / rounds, seconds, peak, down, up)


def peer(kind: str, job: Path, number: int) -> Measured:
    """Run a peer in a separate process."""
    # Not `-m`: Ray's workers find what is in a module, and nothing that is in `__main__`.
    start = "import sys; from simulations.benchmarks.peers import main; main(*sys.argv[1:])"
    command = ["-c", start, kind, str(job)]
    out, seconds, peak = watched(command)
    found = json.loads(out.splitlines()[-1])
    rate = 60 * number / found["seconds"]
    return Measured(rate, seconds, peak, found["down"], found["up"])


def watched(command: Sequence[str]) -> tuple[str, float, int]:
    """Return what a Python command prints, its seconds, and the peak of its processes' memory."""
    started = time.monotonic()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    with Peak(process.pid, 0.5) as peak:
        out, _ = process.communicate()
    assert process.returncode == 0, (process.returncode, command)
    return out, time.monotonic() - started, peak.bytes

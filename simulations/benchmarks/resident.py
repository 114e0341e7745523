"""What a node's worker saves: a task of a SuperNode, whose every task is a process of its own.

`python -m simulations.benchmarks.resident FOLDER [PID]` is such a process: it carries out the
task in the folder, through the worker of the node with that number, or alone, as without a worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

from clients.worker_calls import NodeWorker
from clients.worker_frames import Order
from fedmoe.system.processes import process_of
from simulations.benchmarks.measure import Options, Row, ratio

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"
ALONE, FIRST, SECOND = "in a process of its own", "first of a worker", "second of a worker"


def rows(options: Options) -> Iterator[Row]:
    """A second task against one without a worker, and how often the worker has loaded a model."""
    if sys.platform != "linux":
        return
    overrides = ["training.steps=1", *(["data.per_domain=40"] if options.quick else [])]
    seconds: dict[str, list[float]] = {name: [] for name in (ALONE, FIRST, SECOND)}
    loads = 0
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), overrides)
        for _ in range(options.repeats):
            seconds[ALONE].append(timed(folder)[0])
            # Stands for a SuperNode: when it ends, its worker does, too.
            with subprocess.Popen(["sleep", "86400"]) as node:
                try:
                    seconds[FIRST].append(timed(folder, node.pid)[0])
                    second, loads = timed(folder, node.pid)
                    seconds[SECOND].append(second)
                finally:
                    node.kill()
    setting = "mini, quickstart, 1 step"
    note = "; ".join(f"{name} {median(values):.1f} s" for name, values in seconds.items())
    second = ratio(seconds[SECOND], seconds[ALONE])
    yield Row(
        "a node's second task against one without a worker",
        setting,
        f"{second:.2f}x",
        note=f"{note}; Python's start included",
    )
    yield Row("models loaded for a node's two tasks", setting, str(loads), "1", loads == 1)


def write_task(folder: Path, overrides: list[str]) -> None:
    """The first task of the quickstart, as a node gets it."""
    from fedmoe.config import load_experiment
    from fedmoe.config.load import to_yaml
    from fedmoe.messages.codec import pack_task
    from fedmoe.rounds import plan_round
    from fedmoe.runs.prepare import prepare

    prepared = prepare(load_experiment(CONFIG, overrides))
    (task,) = plan_round(
        prepared.first_state(), prepared.members, 1, prepared.experiment.seed, prepared.send_to
    )
    packed = pack_task(task)
    order = Order(to_yaml(prepared.experiment), "", packed.scalars, None, [], "")
    (folder / "order.json").write_text(json.dumps(asdict(order)))
    (folder / "buffer").write_bytes(packed.buffer)


def timed(folder: str, node: int | None = None) -> tuple[float, int]:
    """Seconds of one task in a new process, and the loads of the worker that did it."""
    command = [sys.executable, "-m", "simulations.benchmarks.resident", folder]
    command += [str(node)] if node else []
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - started, int(done.stdout)


def main(folder: Path, pid: int | None) -> None:
    """Carry out the task in a folder; prints how often its worker has loaded a model."""
    order = Order(**json.loads((folder / "order.json").read_text()))
    buffer, node = (folder / "buffer").read_bytes(), process_of(pid) if pid else None
    if node:
        worker = NodeWorker(node)
        worker.ask(order, buffer, 3600.0)
        hello = worker.look()
        print(hello.loads if hello else 0)
        return
    from clients.resident import carry_out

    carry_out(order, memoryview(buffer))
    print(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)

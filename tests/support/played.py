"""Whole runs in processes of their own, killed where asked, and what they leave."""

import json
import multiprocessing
import os
import signal
import sys
import warnings

from fedmoe.config import load_experiment
from fedmoe.errors import FedMoEWarning
from fedmoe.progress.table import LiveTable
from fedmoe.report.ledger import Ledger, read_ledger
from fedmoe.runs import session
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.local.in_process import make_transport
from fedmoe.system import files as atomic
from fedmoe.system.background import Background

WALL = {
    "seconds",
    "peak_bytes",
    "busy_seconds",
    "makespan_seconds",
    "ideal_seconds",
    "training_share",
    "phases",
}
"""Differences between two bitwise identical runs: wall time and memory."""


def in_child(job, *arguments):
    """The exit code of `job` in a process of its own: negative, the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=job, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def play(config, folder, overrides, resume, die_at=None, count=None, in_turn=False):
    """A whole run; with `die_at` the process is killed when that many things have happened.

    With `in_turn` the next round waits until a checkpoint is written: things happen in one order.
    """
    happened = 0
    if in_turn:
        Background.add = lambda self, job: job()
    warnings.simplefilter("always", FedMoEWarning)
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)

    def watched(function):
        def wrapper(*args, **kwargs):
            nonlocal happened
            happened += 1
            if happened == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    ClientSide.train = watched(ClientSide.train)
    ClientSide.train_together = watched(ClientSide.train_together)
    Ledger.append = watched(Ledger.append)
    atomic.os.replace = watched(os.replace)
    experiment = load_experiment(config, [*overrides, f"simulation.folder={folder}"])
    session.run(experiment, LiveTable(num_rounds=3, quiet=True), make_transport, resume)
    if count is not None:
        count.value = happened


def told(folder):
    """A run's ledger, without wall times and without its interruptions."""
    lines = [r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] != "resumed"]
    return [{k: v for k, v in line.items() if k not in WALL} for line in lines]


def result(folder):
    """Everything that a run leaves and that must not depend on what happened on the way."""
    run = folder / "run"
    with (run / "activations.npz").open("rb") as file:
        import numpy as np

        counts = {k: v.tolist() for k, v in np.load(file).items()}
    scores = [
        {k: v for k, v in s.items() if k not in WALL}
        for s in json.loads((run / "scores.json").read_text())
    ]
    return told(run), counts, scores

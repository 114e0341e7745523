"""What waiting for nobody gains where one owner of four computes ten times slower than it could.

    python -m simulations.asynchronous                 (about 10 minutes; needs fedmoe[deploy])
    python -m simulations.asynchronous --factor 3 --seeds 0 1

Real Flower processes on this machine, in a folder of `fedmoe deploy init`: once by rounds, once
with `fedbuff`, with the same number of updates. The slow owner's worker is stopped nine tenths of
the time. What came of it: `asynchronous.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psutil

from fedmoe.cli.main import main as fedmoe
from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record
from fedmoe.system.files import write_text
from simulations.rehearsal.deployment import Deployment
from simulations.rehearsal.processes import Service
from simulations.rehearsal.watching import Watched

CONFIG = Path(__file__).parents[1] / "configs/deploy/rehearsal.yaml"
OWNERS = "a=high,b=low,c=high,slow=low"
SETTINGS = [
    "data.per_domain=200",
    "training={steps: 20, batch_size: 8, learning_rate: 5e-3}",
    "evaluation={every: 0, validation_examples: 2, test_examples: 100, max_new_tokens: 2}",
]
VARIANTS = {
    "by rounds": ["aggregation.name=fedavg", "rounds=6"],
    "as they arrive": ["aggregation.name=fedbuff", "aggregation.buffer_size=2", "rounds=12"],
}
SLICE_SECONDS = 0.5
LOOK_SECONDS = 2.0
WARM_SECONDS = 30.0
"""For which a worker runs at full speed: loading the model is no part of the comparison."""


@contextmanager
def slowed(service: Service, factor: float) -> Iterator[None]:
    """Let the workers of a client run for one part of `factor` of the time."""
    ended = Event()

    def loop() -> None:
        pids, looked = [], 0.0
        slices = (signal.SIGSTOP, 1 - 1 / factor), (signal.SIGCONT, 1 / factor)
        while not ended.is_set():
            if time.monotonic() > looked + LOOK_SECONDS:
                pids, looked = [p for p in service.pids("worker") if warm(p)], time.monotonic()
            for number, share in slices:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                ended.wait(SLICE_SECONDS * share)

    thread = Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def warm(pid: int) -> bool:
    """Return whether a process has run for long enough to have loaded the model."""
    try:
        return time.time() - psutil.Process(pid).create_time() > WARM_SECONDS
    except psutil.Error:
        return False


def run(folder: Path, overrides: Sequence[str], factor: float) -> list[Record]:
    """Return the ledger of one run on real processes.

    Raises:
        FedMoEError: it cannot be set up, or did not end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    words = ["deploy", "init", str(folder), "--server=127.0.0.1", "--config", str(CONFIG)]
    if fedmoe([*words, "--clients", OWNERS, *SETTINGS, *overrides]):
        raise FedMoEError(f"{folder} could not be made")
    deployment = Deployment(folder, folder / "state")
    try:
        with slowed(deployment.clients["slow"], factor):
            ledger = Watched(deployment, ()).run()
    finally:
        deployment.stop()
    if not ledger or ledger[-1]["kind"] != "end":
        raise FedMoEError(f"the run in {folder} did not end; see the logs under {folder / 'state'}")
    return ledger


def row(name: str, seed: int, ledger: Sequence[Record]) -> str:
    """Return a run's line of the table."""
    updates = [r for r in ledger if r["kind"] == "client" and r["status"] == "ok"]
    losses = [r["loss"] for r in ledger if r["kind"] == "evaluation"]
    seconds = [r["seconds"] for r in ledger if r["kind"] == "round"]
    minutes, steps = sum(seconds[1:]) / 60, len(seconds) - 1  # models are loaded in the first
    of_slow = sum(r["client"] == OWNERS.count(",") for r in updates)
    cells = [name, seed, f"{sum(seconds) / 60:.1f}", f"{steps / minutes:.1f}"]
    cells += [f"{sum(r['round'] > 1 for r in updates) / minutes:.1f}"]
    cells += [f"{of_slow} of {len(updates)}", max(r.get("staleness", 0) for r in updates)]
    cells += [f"{sum(losses[:2]) / 2:.3f}", f"{sum(losses[-2:]) / 2:.3f}"]
    return "| " + " | ".join(map(str, cells)) + " |\n"


HEADINGS = (
    "| run | seed | minutes | steps/min | updates/min | by the slow owner | most steps stale "
    "| loss before | after |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both variants per seed, and write the table; the exit code."""
    parser = argparse.ArgumentParser("asynchronous")
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/asynchronous"))
    given = parser.parse_args(argv)
    table = HEADINGS
    try:
        for seed in given.seeds:
            for name, overrides in VARIANTS.items():
                folder = given.out / f"{name.replace(' ', '-')}-{seed}"
                ledger = run(folder, [*overrides, f"seed={seed}"], given.factor)
                table += row(name, seed, ledger)
                write_text(given.out / "table.md", table)
    except FedMoEError as error:
        print(f"asynchronous: error: {error}", file=sys.stderr)
        return error.exit_code
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

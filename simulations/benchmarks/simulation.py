"""Overhead of a simulated client-round beside its training, against a plain loop and Flower."""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping

import torch

from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.local.pool import Pool
from simulations.benchmarks.idle import LOGICAL_TENSORS, idle_run, one_round
from simulations.benchmarks.measure import Options, Row, in_turns, named, ratio

SETTING = f"{LOGICAL_TENSORS:,} tensors, 6.3 MB, idle client"
HERE, POOL, LOOP = "in this process", "on two workers", "plain loop"


def rows(options: Options) -> Iterator[Row]:
    """Yield overhead in milliseconds, then the peers."""
    yield from overhead(options)
    if not options.quick:
        yield flower()


def overhead(options: Options) -> Iterator[Row]:
    """Yield a round of idle clients, through our transports and as a plain loop."""
    clients = 4 if options.quick else 10
    run = idle_run(clients)
    size = run.model.layout.size // LOGICAL_TENSORS
    plain = {f"t{i}": torch.zeros(size) for i in range(LOGICAL_TENSORS)}
    pool = Pool(run, 2)
    steps = {
        HERE: lambda: one_round(run, InProcess(run)),
        POOL: lambda: one_round(run, pool),
        LOOP: lambda: plain_round(plain, clients),
    }
    try:
        seconds = in_turns(steps, options.repeats)
    finally:
        pool.close()
    each = {name: statistics.median(times) / clients * 1e3 for name, times in seconds.items()}
    for name in (HERE, POOL):
        # A time, not a ratio: the turn that the machine disturbed least comes closest to it.
        least = min(seconds[name]) / clients * 1e3
        note = f"the best turn; median {each[name]:.1f} ms"
        what = f"overhead per client-round {name}"
        yield Row(what, SETTING, f"{least:.1f} ms", "at most 10 ms", least <= 10, note)
    slower, note = ratio(seconds[LOOP], seconds[HERE]), f"deepcopy and mean: {each[LOOP]:.0f} ms"
    yield Row(f"{LOOP} in Python against {HERE}", SETTING, f"{slower:.1f}x", note=note)


def plain_round(state: Mapping[str, torch.Tensor], clients: int) -> dict[str, torch.Tensor]:
    """FedAvg as people write it: a copy of the state for each client, then a mean by name."""
    answers = [copy.deepcopy(dict(state)) for _ in range(clients)]
    mean = {name: torch.zeros_like(values) for name, values in state.items()}
    for answer in answers:
        for name, values in answer.items():
            mean[name] += values / clients
    return mean


def flower() -> Row:
    """Return Flower's Ray engine at the same size, in a separate process."""
    what, peer = "Flower's Ray engine, per client-round", named("flwr")
    command = [sys.executable, "-m", "simulations.benchmarks.flower_idle", "3"]
    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    except subprocess.TimeoutExpired:
        return Row(what, SETTING, "not done in 10 minutes", note=peer)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if len(lines) < 3:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Row(what, SETTING, "did not run", note=f"{peer}: {last[:80]}")
    first, *later = (float(line[1]) for line in lines)
    note = f"{peer}; first round {first:.0f} s"
    return Row(what, SETTING, f"{statistics.median(later) / 2 * 1e3:,.0f} ms", note=note)

"""Overhead of a simulated client-round beside its training, against a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from statistics import median

import torch

from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.local.pool import Pool
from simulations.benchmarks.idle import LOGICAL_TENSORS, idle_run, one_round
from simulations.benchmarks.measure import Options, Row, in_turns, ratio

SETTING = f"{LOGICAL_TENSORS:,} tensors, 6.3 MB, idle client"
HERE, POOL, LOOP = "in this process", "on two workers", "plain loop"


def rows(options: Options) -> Iterator[Row]:
    """Yield milliseconds per client-round of idle clients, by transport and as a plain loop."""
    clients = 4 if options.quick else 10
    run = idle_run(clients)
    size = run.setup.model.layout.size // LOGICAL_TENSORS
    plain = {f"t{i}": torch.zeros(size) for i in range(LOGICAL_TENSORS)}
    pool = Pool(run.server, run.scorer, 2)
    steps = {
        HERE: lambda: one_round(run, InProcess(run.server, run.scorer)),
        POOL: lambda: one_round(run, pool),
        LOOP: lambda: plain_round(plain, clients),
    }
    try:
        seconds = in_turns(steps, options.repeats)
    finally:
        pool.close()
    each = {name: median(times) / clients * 1e3 for name, times in seconds.items()}
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

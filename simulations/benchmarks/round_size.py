"""A round at OLMoE-1B-7B's size beside its training, in copies of the adapter's bytes.

The adapter has 148 million values, 592 MB: the LoRA of experts and attention at rank 20. A copy
goes into memory that is in use already: nothing that writes the bytes again can be cheaper.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmoe.adapter import Adapter, Layout, keep_untouched
from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.robust.geometry import moves_of
from fedmoe.messages.codec import pack_task, pack_update, sealed, unpack_task, unpack_update
from fedmoe.messages.records import Message, Task, Update
from fedmoe.messages.validation import LIMITS, Limits
from fedmoe.rounds import ServerState
from fedmoe.runs.checkpoint import Checkpoint, write_checkpoint
from simulations.benchmarks.aggregation import layout_of
from simulations.benchmarks.idle import update_of
from simulations.benchmarks.measure import Options, Row, at_most, ratio

LAYERS, EXPERTS, HIDDEN, RANK = 16, 64, 2048, 20
CLIENTS = 10
QUARTER = 4
"""Layers of the smaller size, for machines that share their memory."""


def rows(options: Options) -> Iterator[Row]:
    """Yield what each part of a round costs, at a quarter of the size and at all of it."""
    sizes = [layout_of(1, 4, 64, 4)] if options.quick else []
    sizes = sizes or [layout_of(n, EXPERTS, HIDDEN, RANK) for n in (QUARTER, LAYERS)]
    for layout in sizes:
        yield from rows_of(layout, options)


def rows_of(layout: Layout, options: Options) -> Iterator[Row]:
    """Yield the figures of one size."""
    setting = f"{layout.size / 1e6:.0f} M values, {4 * layout.size / 1e6:.0f} MB"
    state, update = state_of(layout), update_like(layout, 0)
    task = Task(1, 0, "t", 1, torch.ones(layout.num_layers), state.adapter)
    sent, answer = sealed(pack_task(task)), pack_update(update)
    from_flower = replace(sent, buffer=bytes(sent.buffer))
    into = torch.zeros(layout.size)
    # A node's worker receives into memory of its own; without one Flower's bytes are read.
    arrived = replace(sent, buffer=memoryview(bytearray(sent.buffer)))
    bound = replace(LIMITS, mean=1.1e-3, delta=3e-3)  # as a run's server has them
    wide = replace(bound, mean=0.7e-3)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        steps = {
            "copy": lambda: into.copy_(update.delta.flat),
            "pack a task": lambda: pack_task(task),
            "unpack a task": lambda: unpack_task(arrived, layout),
            "unpack a task from Flower's bytes": lambda: unpack_task(from_flower, layout),
            "pack an update": lambda: pack_update(update),
            "seal and unpack an update": lambda: received(answer, task, bound),
            "the same, its largest value above the mean": lambda: received(answer, task, wide),
            f"combine, per client of {CLIENTS}": partial(combine, state.adapter, update),
            "the norms that robust.clip compares, per client": partial(
                moves_of, state.adapter, update.delta, {}
            ),
            "write a checkpoint": lambda: write_checkpoint(Path(folder), checkpoint(state)),
            "a client's side": partial(client_side, arrived, task, update, into),
        }
        taken = options.turns(steps)
    bars = dict(zip([*steps][1:8], (1.5, 3, 3, 1.5, 2, 2, 2.5), strict=True))
    bars |= {"write a checkpoint": 5}
    for name in [*steps][1:]:
        times = taken[name]
        if name.startswith("combine"):
            times = [seconds / CLIENTS for seconds in times]
        figure = ratio(times, taken["copy"])
        bar: dict[str, Any] = {"figure": f"{figure:.2f}x"}
        if name in bars:
            bar = at_most(figure, bars[name])
        yield Row(name, setting, note=f"{min(times) * 1e3:.0f} ms at best", **bar)


def state_of(layout: Layout) -> ServerState:
    """Return a state of random values."""
    flat = np.random.default_rng(7).standard_normal(layout.size, np.float32)
    return ServerState(1, Adapter(layout, torch.from_numpy(flat)), {"t": torch.ones(16)})


def update_like(layout: Layout, client: int) -> Update:
    """Return an update whose values are up to .001 in size, as of a step of AdamW."""
    flat = np.random.default_rng(client).random(layout.size, np.float32)
    flat -= 0.5
    flat *= 2e-3
    delta = Adapter(layout, torch.from_numpy(flat))
    return update_of(Task(1, 0, "t", 1, torch.ones(layout.num_layers), delta), delta)


def received(answer: Message, task: Task, limits: Limits) -> Update:
    """Return an update that its client seals and the server checks."""
    return unpack_update(sealed(answer), task.adapter.layout, task, limits=limits)


def combine(adapter: Adapter, update: Update) -> Adapter:
    """Return the mean over some clients, whose updates stand for one another."""
    return FedAvg().combine(adapter, [replace(update, client=c) for c in range(CLIENTS)])


def checkpoint(state: ServerState) -> Checkpoint:
    """Return the checkpoint of a run of one client."""
    counts = torch.zeros(1, state.adapter.layout.num_layers, EXPERTS, dtype=torch.int64)
    return Checkpoint(state, {}, counts, counts)


def client_side(arrived: Message, task: Task, update: Update, model: torch.Tensor) -> Message:
    """Do all that a client does beside training: read, load, take the difference, pack, seal."""
    found = unpack_task(arrived, task.adapter.layout)
    model.copy_(found.adapter.flat)
    delta = keep_untouched(Adapter(found.adapter.layout, model) - found.adapter, update.counts)
    return sealed(pack_update(replace(update, delta=delta)))

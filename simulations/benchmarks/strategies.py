"""What each strategy's aggregation costs at the shape of OLMoE-1B-7B, one layer at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, initial_adapter
from fedmoe.aggregation import STRATEGIES
from fedmoe.aggregation.strategy import Strategy
from fedmoe.messages.codec import Task, Update
from fedmoe.seeds import generator
from simulations.benchmarks.measure import Options, Row, named
from simulations.benchmarks.memory import Peak, give_back, pss_bytes

LAYERS, EXPERTS, HIDDEN, WIDTH, RANK, CLIENTS = 16, 64, 2048, 1024, 16, 10


def rows(options: Options) -> Iterator[Row]:
    """Every strategy that combines updates, against FedAvg; then the dense SVD it avoids."""
    torch.set_num_threads(options.threads)
    experts, hidden = (4, 128) if options.quick else (EXPERTS, HIDDEN)
    width, clients = hidden // 2, 3 if options.quick else CLIENTS
    plain = one_layer(experts, hidden, width)
    setting = f"a layer of {experts} experts, {hidden} x {hidden}, rank {RANK}, {clients} clients"
    taken: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for strategy in (kind() for kind in STRATEGIES):
        name = str(getattr(strategy, "name"))  # noqa: B009
        taken[name], peaks[name] = measured(strategy, plain, clients, options)
    for name, seconds in taken.items():
        best, slower = min(seconds), min(seconds) / min(taken["fedavg"])
        note = f"{best:.2f} s a layer, {LAYERS * best:.0f} s for {LAYERS}; {named('torch')}"
        figure = f"{slower:.1f}x FedAvg's time, {peaks[name] / 1e6:.0f} MB above the updates"
        yield Row(f"aggregation, {name}", setting, figure, note=note)
    give_back()
    before = pss_bytes([os.getpid()])
    with Peak(lambda: pss_bytes([os.getpid()]), 0.02) as peak:
        dense = dense_seconds(hidden, width, clients, options)
    best, held = min(taken["flexlora"]), max(0, peak.bytes - before)
    yield Row(
        "aggregation by dense SVD against factored (flexlora)",
        setting,
        f"{experts * dense / best:.0f}x slower",
        note=f"one expert's two matrices dense: {dense:.2f} s, times {experts}; "
        f"{held / 1e6:.0f} MB for one expert",
    )


def one_layer(experts: int, hidden: int, width: int) -> Layout:
    """The expert LoRA of one layer."""
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for name, out, inner in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
        tensors.append((f"0.experts.{name}.A", (experts, RANK, inner), 0))
        tensors.append((f"0.experts.{name}.B", (experts, out, RANK), 0))
    return Layout.of(tensors, 1, experts, RANK, float(RANK))


def measured(
    strategy: Strategy, plain: Layout, clients: int, options: Options
) -> tuple[list[float], int]:
    """Seconds of `combine` and its peak bytes above the updates, which are there already."""
    initial = initial_adapter(plain, generator(0, "bench"))
    state = strategy.first_state(initial)
    updates = [update_of(strategy, state, plain, initial, client) for client in range(clients)]
    seconds = []
    give_back()  # else what another strategy has freed would serve this one, unseen
    before = pss_bytes([os.getpid()])
    with Peak(lambda: pss_bytes([os.getpid()]), 0.02) as peak:
        for _ in range(1 if options.quick else max(1, options.repeats // 2)):
            started = time.perf_counter()
            strategy.combine(state, updates, clients)
            seconds.append(time.perf_counter() - started)
    return seconds, max(0, peak.bytes - before)


def update_of(
    strategy: Strategy, state: Adapter, plain: Layout, initial: Adapter, client: int
) -> Update:
    """A client's update of random values; where ranks may differ, every third has half of it."""
    if strategy.mixed_ranks and client % 3 == 2:
        plain = plain.with_rank(RANK // 2)
    layouts = strategy.layouts(plain, 1)
    task = Task(1, client, "t", 1, torch.ones(1), strategy.send(state, plain))
    layout = strategy.local(task, layouts, initial).layouts.update
    noise = torch.randn(layout.size, generator=generator(client, "bench")) * 0.01
    counts = torch.ones(1, plain.num_experts, dtype=torch.int64)
    return Update(
        1,
        client,
        "t",
        1,
        torch.ones(1),
        Adapter(layout, noise),
        counts,
        client + 1,
        plain.num_experts,
        1,
        1.0,
        1.0,
        1.0,
        1,
    )


def dense_seconds(hidden: int, width: int, clients: int, options: Options) -> float:
    """The mean product of one expert formed and decomposed, both of its matrices, in float32."""
    best = float("inf")
    for _ in range(1 if options.quick else 2):
        started = time.perf_counter()
        for out, inner in ((2 * width, hidden), (hidden, width)):
            total: Tensor = torch.zeros(out, inner)
            for client in range(clients):
                g = generator(client, "dense")
                total += torch.randn(out, RANK, generator=g) @ torch.randn(RANK, inner, generator=g)
            torch.linalg.svd(total, full_matrices=False)
        best = min(best, time.perf_counter() - started)
    return best

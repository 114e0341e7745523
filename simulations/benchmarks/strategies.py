"""The cost of each strategy's aggregation at the shape of OLMoE-1B-7B, one layer at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from fedmoe.adapter import Adapter, Layout, initial_adapter
from fedmoe.aggregation import ROBUST_RULES, STRATEGIES, FedAvg, RobustRule
from fedmoe.aggregation.robust import PLAIN
from fedmoe.aggregation.strategy import Strategy
from fedmoe.messages.records import Task, Update
from fedmoe.seeds import generator
from simulations.benchmarks.idle import update_of
from simulations.benchmarks.measure import Options, Row, named
from simulations.benchmarks.memory import Peak

LAYERS, EXPERTS, HIDDEN, RANK, CLIENTS = 16, 64, 2048, 16, 10


def rows(options: Options) -> Iterator[Row]:
    """Yield every strategy that combines updates, and every robust rule on FedAvg, against it."""
    experts, hidden, clients = (4, 128, 3) if options.quick else (EXPERTS, HIDDEN, CLIENTS)
    plain = one_layer(experts, hidden)
    setting = f"a layer of {experts} experts, {hidden} x {hidden}, rank {RANK}, {clients} clients"
    fedavg = 0.0
    rules = [(FedAvg(), rule_named(name)) for name in ROBUST_RULES.names if name != PLAIN.name]
    for strategy, rule in [*((kind(), PLAIN) for kind in STRATEGIES), *rules]:
        name = str(strategy.name if rule is PLAIN else f"fedavg with {rule.name}")
        seconds, above = measured(strategy, plain, clients, options, rule)
        fedavg = fedavg or seconds
        note = f"{seconds:.2f} s a layer, {LAYERS * seconds:.0f} s for {LAYERS}; {named('torch')}"
        figure = f"{seconds / fedavg:.1f}x FedAvg's time, {above / 1e6:.0f} MB above the updates"
        yield Row(f"aggregation, {name}", setting, figure, note=note)


def one_layer(experts: int, hidden: int) -> Layout:
    """Return the expert LoRA of one layer."""
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for name, inner in (("gate_up_proj", hidden), ("down_proj", hidden // 2)):
        tensors.append((f"0.experts.{name}.A", (experts, RANK, inner), 0))
        tensors.append((f"0.experts.{name}.B", (experts, hidden, RANK), 0))
    return Layout.of(tensors, 1, experts, RANK, float(RANK))


def rule_named(name: str) -> RobustRule:
    """Return a rule as it is by default; the update of a first client stands in for root rows."""
    return ROBUST_RULES.find(name)(**({"root": "-"} if name == "fltrust" else {}))


def measured(
    strategy: Strategy, plain: Layout, clients: int, options: Options, rule: RobustRule = PLAIN
) -> tuple[float, int]:
    """Return the best seconds of `combine`, and its peak bytes above the updates."""
    initial = initial_adapter(plain, generator(0, "bench"))
    state = strategy.first_state(initial)
    updates = [random_update(strategy, state, plain, initial, i) for i in range(clients)]
    seconds = []
    with Peak() as peak:
        for _ in range(1 if options.quick else max(1, options.repeats // 2)):
            started = time.perf_counter()
            rule.combine(strategy, state, updates, clients, root=updates[0])
            seconds.append(time.perf_counter() - started)
    return min(seconds), max(0, peak.bytes - peak.before)


def random_update(
    strategy: Strategy, state: Adapter, plain: Layout, initial: Adapter, client: int
) -> Update:
    """Return a client's update; where ranks may differ, every third client has half of it."""
    if strategy.mixed_ranks and client % 3 == 2:
        plain = plain.with_rank(RANK // 2)
    task = Task(1, client, "t", 1, torch.ones(1), strategy.send(state, plain))
    layout = strategy.local(task, strategy.layouts(plain, 1), initial).layouts.update
    noise = torch.randn(layout.size, generator=generator(client, "bench")) * 0.01
    counts = torch.ones(1, plain.num_experts, dtype=torch.int64)
    return replace(update_of(task, Adapter(layout, noise), client + 1), counts=counts)

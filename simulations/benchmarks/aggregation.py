"""Aggregation against the memory it reads, Flower's own mean, and the dense SVD."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.factored import best_factors
from fedmoe.messages.codec import Update
from simulations.benchmarks.measure import Options, Row, at_least, at_most, in_turns, named, ratio

COPIES = "copy_ of the same updates, copied bytes counted once"


def rows(options: Options) -> Iterator[Row]:
    """The mean's share of copy bandwidth, its memory, its peers; then the factored SVD."""
    torch.set_num_threads(options.threads)
    small, large = new_layout(4, 16, 256, 128, 24), new_layout(9, 64, 1024, 512, 8)
    yield from mean_rows(small, 4 if options.quick else 16, options)
    if not options.quick:
        yield from mean_rows(large, 16, options)
    yield memory_row(small)
    yield from svd_rows(256 if options.quick else 2048, options)


def new_layout(layers: int, experts: int, hidden: int, width: int, rank: int) -> Layout:
    """The factors of an OLMoE's expert and attention LoRA."""
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for i in range(layers):
        for name, out, inner in (("up", 2 * width, hidden), ("down", hidden, width)):
            tensors += [(f"{i}.{name}.A", (experts, rank, inner), i)]
            tensors += [(f"{i}.{name}.B", (experts, out, rank), i)]
        tensors += [(f"{i}.q.A", (rank, hidden), None), (f"{i}.q.B", (hidden, rank), None)]
    return Layout.of(tensors, layers, experts, rank, rank)


def update_of(layout: Layout, client: int) -> Update:
    """An update in memory of numpy's, as the wire decodes it; values of a cheap generator."""
    flat = np.random.default_rng(client).standard_normal(layout.size, np.float32)
    return Update(
        round=1,
        client=client,
        tier="t",
        top_k=1,
        rescaler=torch.ones(layout.num_layers),
        delta=Adapter(layout, torch.from_numpy(flat)),
        examples=client + 1,
        tokens=1,
        steps=1,
        counts=torch.ones(layout.num_layers, layout.num_experts, dtype=torch.int64),
        loss_before=1.0,
        loss_after=1.0,
        seconds=1.0,
        peak_bytes=1,
    )


def mean_rows(layout: Layout, num_clients: int, options: Options) -> Iterator[Row]:
    """The streaming mean, Flower's and a naive one, on the same updates."""
    updates = [update_of(layout, client) for client in range(num_clients)]
    deltas = [u.delta.flat for u in updates]
    adapter, into = Adapter(layout, torch.zeros(layout.size)), torch.zeros(layout.size)
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: [into.copy_(delta) for delta in deltas],
        "copy one": lambda: [into.copy_(deltas[0]) for _ in deltas],
        "fedmoe": partial(FedAvg().combine, adapter, updates),
        "flower": partial(aggregate_arrayrecords, [_record(u) for u in updates], "examples"),
        "stack": partial(_stacked_mean, updates),
    }
    wanted = _stacked_mean(updates)
    torch.testing.assert_close(FedAvg().combine(adapter, updates).flat, wanted)
    taken = in_turns(steps, options.repeats, clock=options.clock)
    setting = (
        f"{num_clients} clients of {4 * layout.size / 1e6:.1f} MB, {options.threads} thread(s)"
    )
    share = ratio(taken["copy"], taken["fedmoe"])
    fastest = 4 * layout.size * num_clients / min(taken["fedmoe"]) / 1e9
    note = f"{COPIES}; at best {fastest:.1f} GB/s of updates"
    yield Row("weighted mean: share of copy bandwidth", setting, **at_least(share, 0.6), note=note)
    stricter = {
        "copied bytes counted as read and written": share / 2,
        "copies of one update, warm in cache": ratio(taken["copy one"], taken["fedmoe"]),
    }
    for what, value in stricter.items():
        yield Row("the same, stricter", setting, f"{value:.2f}x", note=what)
    peers = {
        "flower": (f"{named('flwr')} aggregate_arrayrecords", "on one array a client"),
        "stack": ("stacking all updates in torch", "fp32 sum"),
    }
    for name, (what, note) in peers.items():
        slower = ratio(taken[name], taken["fedmoe"])
        yield Row(f"weighted mean against {what}", setting, f"{slower:.2f}x faster", note=note)


def _record(update: Update) -> RecordDict:
    """A client's reply as Flower's own strategies read it."""
    arrays = ArrayRecord({"flat": Array(update.delta.flat.numpy())})
    metrics = MetricRecord({"examples": update.examples})
    return RecordDict({"arrays": arrays, "metrics": metrics})


def _stacked_mean(updates: list[Update]) -> Tensor:
    weights = torch.tensor([float(u.examples) for u in updates])
    return (torch.stack([u.delta.flat for u in updates]) * (weights / weights.sum())[:, None]).sum(
        0
    )


def memory_row(layout: Layout) -> Row:
    """Peak memory with sixteen times the clients; updates arrive one at a time."""
    few, many = mean_peak_bytes(layout, 4), mean_peak_bytes(layout, 64)
    setting = f"64 clients against 4, {4 * layout.size / 1e6:.1f} MB each"
    sizes = f"{few / 1e6:.1f} and {many / 1e6:.1f} MB of numpy's arrays, updates included"
    return Row("weighted mean: peak memory", setting, **at_most(many / few, 1.01), note=sizes)


def mean_peak_bytes(layout: Layout, num_clients: int) -> int:
    """The most bytes that updates, sum and result hold at one time; all are arrays of numpy's."""
    adapter = Adapter(layout, torch.zeros(layout.size))
    tracemalloc.start()
    FedAvg().combine(adapter, (update_of(layout, client) for client in range(num_clients)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def svd_rows(side: int, options: Options) -> Iterator[Row]:
    """FlexLoRA's step on one matrix, factored and as its paper has it."""
    rank, num_clients = 16, 10
    generator = torch.Generator().manual_seed(0)
    Bs = [torch.randn(side, rank, generator=generator) for _ in range(num_clients)]
    As = [torch.randn(rank, side, generator=generator) for _ in range(num_clients)]
    weights = torch.full((num_clients,), 1 / num_clients)

    def dense(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        total = sum(w * B.to(dtype) @ A.to(dtype) for w, B, A in zip(weights, Bs, As, strict=True))
        u, values, vh = torch.linalg.svd(torch.as_tensor(total), full_matrices=False)
        return (u[:, :rank] * values[:rank]) @ vh[:rank], values

    ours = partial(best_factors, weights, [1.0] * num_clients, Bs, As, rank)
    (best, values), found = dense(torch.float64), ours()
    off = max(
        float((found.B @ found.A - best).norm() / best.norm()),
        float((found.values - values[: len(found.values)]).norm() / values.norm()),
    )
    steps = {"ours": ours, "dense": partial(dense, torch.float32)}
    taken = in_turns(steps, options.repeats, clock=options.clock)
    setting = f"{side} x {side}, rank {rank}, {num_clients} clients"
    speed = ratio(taken["dense"], taken["ours"])
    note = f"torch.linalg.svd, {named('torch')}; ours {min(taken['ours']) * 1e3:.0f} ms"
    yield Row(
        "factored SVD in fp64 against the dense one in fp32",
        setting,
        **at_least(speed, 40),
        note=note,
    )
    yield Row(
        "its distance from the dense one in fp64",
        setting,
        f"{off:.1e}",
        "at most 1e-06",
        off <= 1e-6,
        "relative; of the product and of the singular values",
    )

"""Aggregation against the memory it reads, Flower's own mean, and the dense SVD."""

from __future__ import annotations

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
from fedmoe.messages.records import Task, Update
from simulations.benchmarks.idle import update_of
from simulations.benchmarks.measure import Options, Row, at_least, at_most, named, ratio
from simulations.benchmarks.memory import array_bytes

COPIES = "copy_ of the same updates, copied bytes counted once"


def rows(options: Options) -> Iterator[Row]:
    """Yield the mean's share of copy bandwidth, its memory, its peers; then the factored SVD."""
    small, large = layout_of(4, 16, 256, 24), layout_of(9, 64, 1024, 8)
    yield from mean_rows(small, 4 if options.quick else 16, options)
    if not options.quick:
        yield from mean_rows(large, 16, options)
    yield memory_row(small)
    yield from svd_rows(256 if options.quick else 2048, options)


def layout_of(layers: int, experts: int, hidden: int, rank: int) -> Layout:
    """Return the factors of an OLMoE's expert and attention LoRA; experts of half the width."""
    tensors: list[tuple[str, tuple[int, ...], int | None]] = []
    for i in range(layers):
        for name, out, inner in (("up", hidden, hidden), ("down", hidden, hidden // 2)):
            tensors.append((f"{i}.experts.{name}.A", (experts, rank, inner), i))
            tensors.append((f"{i}.experts.{name}.B", (experts, out, rank), i))
        tensors += [(f"{i}.q.A", (rank, hidden), None), (f"{i}.q.B", (hidden, rank), None)]
    return Layout.of(tensors, layers, experts, rank, float(rank))


def random_update(layout: Layout, client: int) -> Update:
    """Return an update in numpy's memory, as the codec decodes it, of `client + 1` examples."""
    flat = np.random.default_rng(client).standard_normal(layout.size, np.float32)
    delta = Adapter(layout, torch.from_numpy(flat))
    return update_of(
        Task(1, client, "t", 1, torch.ones(layout.num_layers), delta), delta, client + 1
    )


def mean_rows(layout: Layout, clients: int, options: Options) -> Iterator[Row]:
    """Yield the streaming mean, Flower's and a naive one, on the same updates."""
    updates = [random_update(layout, client) for client in range(clients)]
    deltas = [u.delta.flat for u in updates]
    adapter, into = Adapter(layout, torch.zeros(layout.size)), torch.zeros(layout.size)
    torch.testing.assert_close(FedAvg().combine(adapter, updates).flat, stacked_mean(updates))
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: [into.copy_(delta) for delta in deltas],
        "fedmoe": partial(FedAvg().combine, adapter, updates),
        "flower": partial(aggregate_arrayrecords, [record(u) for u in updates], "examples"),
        "stack": partial(stacked_mean, updates),
    }
    taken, size = options.turns(steps), 4 * layout.size
    setting = f"{clients} clients of {size / 1e6:.1f} MB, {options.threads} thread(s)"
    share = ratio(taken["copy"], taken["fedmoe"])
    fastest = size * clients / min(taken["fedmoe"]) / 1e9
    note = f"{COPIES}; at best {fastest:.1f} GB/s of updates"
    yield Row("weighted mean: share of copy bandwidth", setting, **at_least(share, 0.6), note=note)
    for name, peer in (("flower", f"{named('flwr')}'s"), ("stack", "torch's, of stacked updates,")):
        faster = ratio(taken[name], taken["fedmoe"])
        yield Row(f"weighted mean against {peer} mean", setting, f"{faster:.2f}x faster")


def record(update: Update) -> RecordDict:
    """Return a client's reply as Flower's own strategies read it."""
    arrays = ArrayRecord({"flat": Array(update.delta.flat.numpy())})
    return RecordDict({"arrays": arrays, "m": MetricRecord({"examples": update.examples})})


def stacked_mean(updates: list[Update]) -> Tensor:
    """Return the mean by examples, in float32."""
    weights = torch.tensor([float(u.examples) for u in updates])
    weights /= weights.sum()
    return (torch.stack([u.delta.flat for u in updates]) * weights[:, None]).sum(0)


def memory_row(layout: Layout) -> Row:
    """Return peak memory with sixteen times the clients; updates arrive one at a time."""
    adapter = Adapter(layout, torch.zeros(layout.size))
    few, many = (
        array_bytes(
            lambda n=n: FedAvg().combine(adapter, (random_update(layout, i) for i in range(n)))
        )
        for n in (4, 64)
    )
    setting = f"64 clients against 4, {4 * layout.size / 1e6:.1f} MB each"
    sizes = f"{few / 1e6:.1f} and {many / 1e6:.1f} MB of numpy's arrays, updates included"
    return Row("weighted mean: peak memory", setting, **at_most(many / few, 1.01), note=sizes)


def svd_rows(side: int, options: Options) -> Iterator[Row]:
    """Yield FlexLoRA's step on one matrix, factored and as its paper has it."""
    rank, clients = 16, 10
    g = torch.Generator().manual_seed(0)
    Bs = [torch.randn(side, rank, generator=g) for _ in range(clients)]
    As = [torch.randn(rank, side, generator=g) for _ in range(clients)]
    weights = torch.full((clients,), 1 / clients)

    def dense(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        total = sum(w * B.to(dtype) @ A.to(dtype) for w, B, A in zip(weights, Bs, As, strict=True))
        u, values, vh = torch.linalg.svd(torch.as_tensor(total), full_matrices=False)
        return (u[:, :rank] * values[:rank]) @ vh[:rank], values

    ours = partial(best_factors, weights, [1.0] * clients, Bs, As, rank)
    (best, values), found = dense(torch.float64), ours()
    off = max(
        float((found.B @ found.A - best).norm() / best.norm()),
        float((found.values - values[: len(found.values)]).norm() / values.norm()),
    )
    taken = options.turns({"ours": ours, "dense": partial(dense, torch.float32)})
    setting = f"{side} x {side}, rank {rank}, {clients} clients"
    faster = at_least(ratio(taken["dense"], taken["ours"]), 40)
    note = f"torch.linalg.svd, {named('torch')}; ours {min(taken['ours']) * 1e3:.0f} ms"
    yield Row("factored SVD in fp64 against the dense one in fp32", setting, **faster, note=note)
    what, note = "its distance from the dense one in fp64", "relative; products, singular values"
    yield Row(what, setting, f"{off:.1e}", "at most 1e-06", off <= 1e-6, note)

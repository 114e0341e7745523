"""Clients in one pass against the same clients one after another, by processor time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.config import Experiment
from fedmoe.messages.records import Task
from fedmoe.models.experts import SparseExperts
from fedmoe.models.routed import route
from fedmoe.models.shared_pass import SharedPass
from fedmoe.runs.prepare import Prepared, prepare
from fedmoe.training.client import Trainee, train_client
from fedmoe.training.settings import Training
from fedmoe.training.side_by_side import train_side_by_side
from simulations.benchmarks.measure import Options, Row, at_least, ratio
from simulations.benchmarks.sparse_layer import Size

ALONE, TOGETHER = "one after another", "in one pass"
TOKENS = 256
"""Of a client in the layer."""


def rows(options: Options) -> Iterator[Row]:
    """Yield what a pass saves in local rounds of the built-in model, and in a layer."""
    run = prepare(Experiment())
    full = run.setup.model.full_top_k
    for top_ks in ((1,) * 4, (full,) * 4, (full, full // 2, full // 4, 1)):
        seconds = options.turns(local_rounds(run, top_ks, 1 if options.quick else 3))
        faster = at_least(ratio(seconds[ALONE], seconds[TOGETHER]), 1.18)
        said = str(top_ks[0]) if len({*top_ks}) == 1 else ", ".join(map(str, top_ks))
        yield Row("local rounds in one pass", f"4 clients, batches of 8, k = {said}", **faster)
    small, large = Size(256, 16, 128, 8), Size(2048, 64, 1024, 16)
    for size in [small] if options.quick else [small, large]:
        for top_k in (1, 8):
            seconds = options.turns(layer_steps(size, 4, top_k))
            faster = at_least(ratio(seconds[ALONE], seconds[TOGETHER]), 1.5)
            setting = f"4 clients of {TOKENS} tokens, {size.experts} experts, k = {top_k}"
            note = f"hidden {size.hidden}, width {size.width}, rank {size.rank}"
            yield Row("layer steps in one pass", setting, note=note, **faster)


def local_rounds(
    run: Prepared, top_ks: tuple[int, ...], steps: int
) -> dict[str, Callable[[], object]]:
    """Return some steps of training of one client for each k, in both ways."""
    setup, layers = run.setup, run.setup.model.layout.num_layers
    made = Training(steps=steps, batch_size=8, probe_examples=1)
    clients = [
        Trainee(
            Task(1, place, "bench", top_k, torch.ones(layers), setup.initial),
            run.client.rows[place],
            made,
            Local(Layouts.all(setup.model.layout), setup.initial),
        )
        for place, top_k in enumerate(top_ks)
    ]
    pad = setup.tokenizer.pad_token_id

    def alone() -> None:
        for client in clients:
            train_client(setup.model, client.rows, pad, client.task, made, 10, 0)

    return {ALONE: alone, TOGETHER: partial(train_side_by_side, setup.model, clients, pad, 10, 0)}


def layer_steps(size: Size, number: int, top_k: int) -> dict[str, Callable[[], object]]:
    """Return forward and backward of a sparse layer for so many clients, in both ways."""
    make = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    w1 = make(size.experts, 2 * size.width, size.hidden) * size.hidden**-0.5
    w2 = make(size.experts, size.hidden, size.width) * size.width**-0.5
    act = nn.SiLU()

    def step_of(clients: int) -> Callable[[], None]:
        tokens, pairs = TOKENS * clients, size.experts * clients
        hidden, width, rank = size.hidden, size.width, size.rank
        shapes = (rank, hidden), (2 * width, rank), (rank, width), (hidden, rank)
        factors = [(make(pairs, *shape) * 0.01).requires_grad_() for shape in shapes]
        x, weights = make(tokens, hidden).requires_grad_(), torch.ones(tokens, top_k)
        index = make(tokens, size.experts).topk(top_k).indices
        shared = SharedPass([TOKENS] * clients, torch.device("cpu"))

        def step() -> None:
            grouped = (route if clients == 1 else shared.route)(index, size.experts)
            out = SparseExperts.apply(x, weights, w1, w2, *factors, 2.0, grouped, act)
            out.backward(x.detach())  # pyright: ignore
            x.grad = None
            for factor in factors:
                factor.grad = None

        return step

    one, all_of_them = step_of(1), step_of(number)
    return {ALONE: lambda: [one() for _ in range(number)], TOGETHER: all_of_them}

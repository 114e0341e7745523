"""Bytes of a client's upload under every compression, and the error that each makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedmoe.config import load_experiment
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.compression import Bf16, Compression, Int4, Int8, NoCompression, TopK
from fedmoe.rounds import plan_round
from fedmoe.runs.prepare import prepare
from simulations.benchmarks.measure import Options, Row, at_most

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"
UPLOADS: dict[str, tuple[Compression, float]] = {
    "none": (NoCompression(), 1.01),
    "bf16": (Bf16(), 0.51),
    "int8": (Int8(), 0.15),
    "int4": (Int4(), 0.15),
    "top_k 0.1": (TopK(share=0.1), 0.15),
    "top_k 0.01": (TopK(share=0.01), 0.15),
}
"""With the largest share of the adapter in float32 that each may take."""


def rows(options: Options) -> Iterator[Row]:
    """Yield the share of experts that one client's round reached, then every compression.

    The client is the quickstart's first with a budget of one expert, on the built-in model.
    """
    small = ("training.steps=2", "data.per_domain=40") if options.quick else ()
    run = prepare(load_experiment(CONFIG, small))
    members, seed = run.server.members, run.setup.experiment.seed
    tasks = plan_round(run.server.first_state(), members, len(members), seed)
    task = next(task for task in tasks if task.top_k == 1)
    update = run.client.train(task)
    delta, setting = (
        update.delta.flat,
        f"mini, k = 1, {update.steps} steps, {update.tokens:,} tokens",
    )
    touched = (update.counts > 0).double().mean().item()
    note = "an upload lacks the rows of the others"
    yield Row("experts that a round's tokens reached", setting, f"{touched:.2f}x of all", note=note)
    for name, (upload, bar) in UPLOADS.items():
        message = pack_update(update, upload)
        found = unpack_update(message, update.delta.layout, task, upload).delta.flat
        error = (found - delta).norm() / delta.norm()
        share = at_most(message.num_bytes / (4 * delta.numel()), bar)
        note = f"{message.num_bytes:,} bytes; relative error of one round {error:.1e}"
        yield Row(f"bytes up, {name}, against float32", setting, note=note, **share)

"""What a client's upload carries: bytes of a k = 1 round against all values in full.

One client of the quickstart with a budget of one expert trains a real round of the built-in model.
Its update is then packed in every way, and packing and unpacking are timed in turns with a plain
copy of the delta in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmoe.config import load_experiment
from fedmoe.messages.codec import Message, Task, Update, pack_update, unpack_update
from fedmoe.messages.compression import Bf16, Compression, Int4, Int8, NoCompression, TopK
from fedmoe.rounds import plan_round
from fedmoe.runs.prepare import prepare
from fedmoe.runs.prepared import Prepared
from simulations.benchmarks.measure import Options, Row, at_most, in_turns, ratio

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"
UPLOADS: tuple[Compression, ...] = (
    NoCompression(),
    Bf16(),
    Int8(),
    Int4(),
    TopK(share=0.1),
    TopK(share=0.01),
)
BARS = {"int8": 0.15, "int4": 0.15, "top_k": 0.15}
"""The largest share of all values in full that a way to write them down may take."""


@dataclass(frozen=True, eq=False)
class Round:
    """A client's round, to be packed again and again."""

    prepared: Prepared
    task: Task
    update: Update

    def pack(self, upload: Compression) -> Message:
        """The update as a message."""
        return pack_update(self.update, upload)

    def unpack(self, message: Message, upload: Compression) -> Update:
        """The checked update."""
        return unpack_update(message, self.prepared.model.layout, self.task, upload)


def rows(options: Options) -> Iterator[Row]:
    """The share of experts that the round reached, then bytes and time of every way."""
    done = real_round(2 if options.quick else None)
    update = done.update
    setting = f"mini, k = 1, {update.steps} steps, {update.tokens:,} tokens"
    touched = (update.counts > 0).double().mean().item()
    yield Row(
        "experts that a round's tokens reached",
        setting,
        f"{touched:.2f}x of all",
        note="an upload without their rows is smaller by the rest",
    )
    for upload in UPLOADS:
        yield bytes_row(done, upload, setting)
    for upload in UPLOADS:
        yield time_row(done, upload, options.repeats)


def real_round(steps: int | None) -> Round:
    """The first round of the quickstart's first client of the lowest tier."""
    overrides = [] if steps is None else [f"training.steps={steps}", "data.per_domain=40"]
    prepared = prepare(load_experiment(CONFIG, overrides))
    clients = len(prepared.members)
    tasks = plan_round(prepared.first_state(), prepared.members, clients, prepared.experiment.seed)
    task = next(task for task in tasks if task.top_k == 1)
    return Round(prepared, task, prepared.train(task))


def bytes_row(done: Round, upload: Compression, setting: str) -> Row:
    """An upload's bytes against the adapter in float32, and how far off the values are."""
    delta = done.update.delta.flat
    message = done.pack(upload)
    error = (done.unpack(message, upload).delta.flat - delta).norm() / delta.norm()
    share = message.num_bytes / (4 * delta.numel())
    what = f"bytes up, {said(upload)}, against float32"
    note = f"{message.num_bytes:,} bytes; relative error of one round {error:.1e}"
    if upload.name in BARS:
        return Row(what, setting, note=note, **at_most(share, BARS[upload.name]))
    return Row(what, setting, f"{share:.2f}x", note=note)


def time_row(done: Round, upload: Compression, repeats: int) -> Row:
    """Packing, unpacking and all checks against a copy of the delta in memory."""
    delta, message = done.update.delta.flat, done.pack(upload)
    seconds = in_turns(
        {
            "copy": delta.clone,
            "pack": lambda: done.pack(upload),
            "unpack": lambda: done.unpack(message, upload),
        },
        max(repeats, 20),
    )
    pack, unpack = (ratio(seconds[way], seconds["copy"]) for way in ("pack", "unpack"))
    both = sorted(a + b for a, b in zip(seconds["pack"], seconds["unpack"], strict=True))
    share = both[len(both) // 2] / done.update.seconds
    return Row(
        f"pack and unpack, {said(upload)}, against a copy in memory",
        f"{delta.numel():,} values",
        f"{pack:.1f}x + {unpack:.1f}x",
        note=f"{share:.2%} of the round's {done.update.seconds:.1f} s of training",
    )


def said(upload: Compression) -> str:
    """A compression in a few words."""
    return f"{upload.name} {upload.share:g}" if isinstance(upload, TopK) else upload.name

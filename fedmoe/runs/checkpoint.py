"""Checkpoints: after every round, all that the next ones depend on, in one file written whole.

`<run>/checkpoint-<round>.safetensors`, the two newest of them. A file says its own sha256: one that
was cut short or changed is passed over for the one before it. What a client keeps between rounds
has files of its own (`kept`), which a round done again reads as it did the first time.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import CheckpointError
from fedmoe.rounds import ServerState
from fedmoe.system.files import write_bytes

KEPT = 2
NAME = re.compile(r"checkpoint-(\d+)\.safetensors")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after a round."""

    state: ServerState
    versions: dict[int, ServerState]
    """Older states that clients at work started from, by round; in asynchronous runs alone."""
    by_round: Tensor
    """int64 (rounds, layers, experts): routed tokens so far."""
    by_client: Tensor
    """int64 (clients, layers, experts)."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else a resumed run must know: numbers and text that JSON can hold."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the file of the state's round, and remove all but the newest.

    Raises:
        CheckpointError: it cannot be written; the files before it stay.
    """
    number = checkpoint.state.round
    tensors = {"by_round": checkpoint.by_round, "by_client": checkpoint.by_client}
    for prefix, state in _states(checkpoint):
        tensors[f"{prefix}adapter"] = state.adapter.flat
        tensors |= {f"{prefix}rescaler.{tier}": r for tier, r in state.rescalers.items()}
        tensors |= {f"{prefix}memory.{name}": m for name, m in state.memory.items()}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # some share memory
    about = {
        "round": number,
        "versions": sorted(checkpoint.versions),
        "about": checkpoint.about,
        "layout": checkpoint.state.adapter.layout.digest,
    }
    about["sha256"] = _digest(tensors, about)
    path = folder / f"checkpoint-{number}.safetensors"
    try:
        write_bytes(path, save(tensors, {"checkpoint": json.dumps(about)}))
        for old in _rounds(folder)[:-KEPT]:
            (folder / f"checkpoint-{old}.safetensors").unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def newest(folder: Path, layout: Layout, ledger_bytes: int) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with those that were passed over.

    None where there are none. One that counts on more than the `ledger_bytes` that there are is
    passed over, too.

    Raises:
        CheckpointError: there are some, and all are damaged; or they are of another adapter.
    """
    faults: list[str] = []
    for number in reversed(_rounds(folder)):
        path = folder / f"checkpoint-{number}.safetensors"
        try:
            return _read(path, layout, ledger_bytes), faults
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{path}: damaged ({error})")
    if faults:
        raise CheckpointError("no whole checkpoint is left:\n  " + "\n  ".join(faults))
    return None, faults


def remove_checkpoints(folder: Path) -> None:
    """Remove them all: the run has ended, and its adapter is in files of its own."""
    for number in _rounds(folder):
        (folder / f"checkpoint-{number}.safetensors").unlink(missing_ok=True)


def _read(path: Path, layout: Layout, ledger_bytes: int) -> Checkpoint:
    data = path.read_bytes()
    tensors = load(data)
    # The header is read by hand: safetensors gives metadata of files it opens itself alone.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["checkpoint"])
    if about.pop("sha256") != _digest(tensors, about):
        raise ValueError("its sha256 is not that of its values")
    if (needed := about["about"].get("ledger_bytes", 0)) > ledger_bytes:
        raise ValueError(f"it goes on after {needed} bytes of a ledger that has {ledger_bytes}")
    if about["layout"] != layout.digest:
        raise CheckpointError(
            f"{path} is of another adapter: model, rank, alpha or strategy have changed"
        )

    def state(number: int, prefix: str) -> ServerState:
        def named(kind: str) -> dict[str, Tensor]:
            start = f"{prefix}{kind}."
            return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

        adapter = Adapter(layout, tensors[f"{prefix}adapter"])
        return ServerState(number, adapter, named("rescaler"), named("memory"))

    return Checkpoint(
        state(about["round"], ""),
        {number: state(number, f"version.{number}.") for number in about["versions"]},
        tensors["by_round"],
        tensors["by_client"],
        about["about"],
    )


def _states(checkpoint: Checkpoint) -> list[tuple[str, ServerState]]:
    versions = checkpoint.versions.items()
    return [("", checkpoint.state), *((f"version.{v}.", s) for v, s in versions)]


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """A hash of names and values, in the order of names, and of what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\0".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _rounds(folder: Path) -> list[int]:
    """The rounds of which there is a file, in order."""
    found = (NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*"))
    return sorted(int(match[1]) for match in found if match)

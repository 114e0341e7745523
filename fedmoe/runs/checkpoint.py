"""Checkpoints: after every round, all that the next ones depend on, in one file written whole.

`<run>/checkpoint-<round>.safetensors`, the newest two. A damaged one is passed over for the one
before it. What a client keeps between rounds has files of its own (`client_state`), from which a
repeated round reads what it read the first time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.errors import CheckpointError
from fedmoe.rounds import ServerState
from fedmoe.runs.round_files import CHECKPOINTS, DamagedError, RoundFiles
from fedmoe.runs.seal import Seal

if TYPE_CHECKING:
    from fedmoe.adapter import Layout


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
    """Everything else that a resumed run must know: numbers and text that JSON can hold."""

    @property
    def seal(self) -> Seal | None:
        """The folder's small files and its ledger as they were; None in one of an older version."""
        return Seal(**self.about["seal"]) if "seal" in self.about else None


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the file of the state's round, and remove all but the newest.

    Raises:
        CheckpointError: it cannot be written; the files before it stay.
    """
    tensors = {"by_round": checkpoint.by_round, "by_client": checkpoint.by_client}
    versions = checkpoint.versions.items()
    for prefix, state in [("", checkpoint.state), *((f"version.{v}.", s) for v, s in versions)]:
        tensors[f"{prefix}adapter"] = state.adapter.flat
        tensors |= {f"{prefix}rescaler.{tier}": r for tier, r in state.rescalers.items()}
        tensors |= {f"{prefix}memory.{name}": m for name, m in state.memory.items()}
        tensors |= {f"{prefix}centre.{name}": m for name, m in state.centre.items()}
    _files(folder).write(
        checkpoint.state.round,
        checkpoint.state.adapter.layout,
        tensors,
        versions=sorted(checkpoint.versions),
        about=checkpoint.about,
    )


def newest(folder: Path, layout: Layout, ledger: bytes) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, or None, and what is wrong with those passed over.

    A checkpoint that continues another `ledger`, or after more of it, is passed over, too.

    Raises:
        CheckpointError: all that exist are damaged; or one is of another adapter.
    """
    faults: list[str] = []
    for number in reversed(_files(folder).rounds()):
        try:
            found = _read(folder, number, layout)
        except DamagedError as error:
            faults.append(str(error))
            continue
        seal = found.seal
        if not (fault := seal.fault(ledger) if seal else ""):
            return found, faults
        faults.append(f"{_files(folder).path(number)} {fault}")
    if faults:
        raise CheckpointError("no whole checkpoint is left:\n  " + "\n  ".join(faults))
    return None, faults


def has_checkpoints(folder: Path) -> bool:
    """Return whether a folder holds any checkpoint, whole or damaged."""
    return bool(_files(folder).rounds())


def remove_checkpoints(folder: Path) -> None:
    """Remove them all, after the end of a run, which has written its adapter by then."""
    _files(folder).remove()


def _files(folder: Path) -> RoundFiles:
    return RoundFiles(folder, "checkpoint", CHECKPOINTS)


def _read(folder: Path, number: int, layout: Layout) -> Checkpoint:
    tensors, facts = _files(folder).read(number, layout)

    def state(number: int, prefix: str) -> ServerState:
        def named(kind: str) -> dict[str, Tensor]:
            start = f"{prefix}{kind}."
            return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

        adapter = Adapter(layout, tensors[f"{prefix}adapter"])
        kinds = ("rescaler", "memory", "centre")
        return ServerState(number, adapter, *(named(kind) for kind in kinds))

    versions = {number: state(number, f"version.{number}.") for number in facts["versions"]}
    sums = tensors["by_round"], tensors["by_client"]
    return Checkpoint(state(number, ""), versions, *sums, facts["about"])

"""Where a run is written: a new folder, or the one in which an interrupted run goes on."""

from __future__ import annotations

import fcntl
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmoe.config import load_experiment
from fedmoe.config.components import untold
from fedmoe.config.yaml_text import dump, parse, read_yaml
from fedmoe.errors import CheckpointError, ConfigError, FedMoEError
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.checkpoint import Checkpoint, newest, remove_checkpoints
from fedmoe.runs.identity import identity, settings_text, written_identity
from fedmoe.runs.prepared import Prepared
from fedmoe.system.files import write_text

Resume = Literal["no", "auto", "anyway"]
"""`no`: always a new folder. `auto`: go on where a run of this name was interrupted, if it is the
same run. `anyway`: also if config, code or model have changed."""


LEDGER = "ledger.jsonl"
FIRST = {"run-id", "config.yaml", "environment.json", "manifest.json"}
"""What a run's folder may hold before its ledger."""


@dataclass(frozen=True, eq=False)
class Found:
    """A run's folder, locked by this process."""

    folder: Path
    identity: dict[str, str]
    run_id: str
    """Made up when the run began; the same after every interruption from round 0 on."""
    checkpoint: Checkpoint | None = None
    """Where it goes on; None for one that begins."""
    ended: bool = False
    """Whether nothing is left to do but the report."""


@contextmanager
def find(prepared: Prepared, resume: Resume) -> Iterator[Found]:
    """The folder of a run, for as long as it is worked on.

    Raises:
        FedMoEError: the folder cannot be made; another process works in it; the run that was
            interrupted is another one, and what has changed; no whole checkpoint is left.
    """
    parent, name = Path(prepared.experiment.simulation.folder), prepared.experiment.name
    mine = identity(prepared)
    folder = None if resume == "no" else latest(parent, name)
    if folder is not None and not _is_a_run(folder):
        folder = None
    made = folder or new_folder(parent, name)
    with alone_in(made):
        records = read_ledger(folder / LEDGER) if folder and (folder / LEDGER).exists() else []
        if folder is None or not records:
            _clear(made)
            yield Found(made, mine, _run_id(made))
            return
        layout = prepared.first_state().adapter.layout
        ended, ledger_bytes = records[-1]["kind"] == "end", (folder / LEDGER).stat().st_size
        checkpoint, faults = (None, []) if ended else newest(folder, layout, ledger_bytes)
        if resume == "auto":
            # A run without a checkpoint that has not ended begins anew: only its settings count.
            theirs = written_identity(folder) if ended else {}
            theirs = checkpoint.about["identity"] if checkpoint else theirs
            _check_same(folder, prepared, theirs, mine)
        if checkpoint is not None:
            _check_fits(folder, prepared, checkpoint)
        for fault in faults:
            print(f"fedmoe: warning: {fault}; going on from an older one", file=sys.stderr)
        if ended:
            remove_checkpoints(folder)  # it may have been killed before it did
        elif checkpoint is None:
            _clear(folder)
        yield Found(folder, mine, _run_id(folder), checkpoint, ended)


def _is_a_run(folder: Path) -> bool:
    """Whether a folder of that name is a run's, were it one that died in its first moment."""
    # What begins with a dot is the lock, or a file that was not yet in its place.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return LEDGER in names or ("run-id" in names and names <= FIRST) or not names


def latest(parent: Path, name: str) -> Path | None:
    """The folder of the last run of that name: `name`, or the highest of `name-2`, `name-3`."""
    number, found = 1, None
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not folder.is_dir():
            return found
        found, number = folder, number + 1


def new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist: `parent/name`, or with the first free number behind it.

    Raises:
        FedMoEError: it cannot be made.
    """
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise FedMoEError(f"{folder} is a file; name another simulation.folder") from None
            number += 1
        except OSError as error:
            raise FedMoEError(f"{folder} cannot be made: {error.strerror}") from error
        else:
            return folder


HELD: set[Path] = set()
"""Folders that this process works in."""


@contextmanager
def alone_in(folder: Path, who: str = "process") -> Iterator[None]:
    """Keep others out of a folder; the lock goes with the process.

    Raises:
        FedMoEError: another one is at work there, by the word for `who`, in this process or not.
    """
    real = folder.resolve()
    refusal = FedMoEError(f"another {who} is at work in {folder}")
    if real in HELD:  # lockf is blind to that; it would let go of both at the end of the second
        raise refusal
    with (folder / ".lock").open("w") as file:
        try:
            # Not flock: what the process has forked would keep that after its death.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refusal from None
        HELD.add(real)
        try:
            yield
        finally:
            HELD.remove(real)


def _check_same(
    folder: Path, prepared: Prepared, theirs: dict[str, str], mine: dict[str, str]
) -> None:
    """Refuse to go on with another run than was interrupted, or than ended."""
    if nameless := untold(prepared.experiment):
        raise CheckpointError(
            f"{folder} holds a run that cannot be resumed, as nobody can tell whether its code has "
            f"changed: {'; '.join(nameless)}. Use --resume anyway to resume it regardless, "
            "--resume no for a new folder"
        )
    changed = [what for what in mine if theirs and mine[what] != theirs.get(what)]
    differ = _settings_that_differ(folder, prepared)
    if not theirs and differ:
        changed = ["config"]
    if not changed:
        return
    said = ", ".join(changed)
    if "config" in changed and differ:
        said += f" ({'; '.join(differ[:5])})"
    raise CheckpointError(
        f"{folder} holds a run that cannot go on as it was: changed since: {said}. Use --resume "
        "anyway to go on all the same, --resume no for a new folder"
    )


def _check_fits(folder: Path, prepared: Prepared, checkpoint: Checkpoint) -> None:
    """Refuse to go on with other clients or tiers than the checkpoint is of."""
    there = len(checkpoint.by_client), sorted(checkpoint.state.rescalers)
    here = len(prepared.members), sorted(prepared.tiers)
    if there != here:
        raise CheckpointError(
            f"{folder} holds a run of {there[0]} clients in tiers {', '.join(there[1])}; now there "
            f"are {here[0]} in {', '.join(here[1])}. Use --resume no for a new folder"
        )


def _settings_that_differ(folder: Path, prepared: Prepared) -> list[str]:
    """The lines of the settings that are not in the other's, as `- old` and `+ new`."""
    path, text = folder / "config.yaml", settings_text(prepared.experiment)
    try:
        theirs = settings_text(load_experiment(path)).splitlines()
    except ConfigError:
        # It may name what no file can hold, such as rows in memory: then its text has to do.
        kept = {key: parse(text, "")[key] for key in ("simulation", "quorum")}
        try:
            theirs = dump(read_yaml(path) | kept).splitlines()
        except ConfigError:
            return ["its config.yaml is not valid any more"]
    ours = text.splitlines()
    gone = [f"- {line.strip()}" for line in theirs if line not in ours]
    return gone + [f"+ {line.strip()}" for line in ours if line not in theirs]


def _run_id(folder: Path) -> str:
    """What a run's file says, written when there is none."""
    path = folder / "run-id"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


def _clear(folder: Path) -> None:
    """Remove what a run left that was interrupted before its first checkpoint."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

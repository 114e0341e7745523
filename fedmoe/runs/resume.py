"""The folder of a run: a new one, or that of an interrupted run, which is resumed there."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedmoe.config import load_experiment
from fedmoe.config.components import untold
from fedmoe.config.yaml_text import dump, parse, read_yaml
from fedmoe.data.manifest import accounts_manifest
from fedmoe.errors import CheckpointError, ConfigError, FedMoEError, FedMoEWarning
from fedmoe.messages.rows import RowCounts
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.checkpoint import has_checkpoints, newest, remove_checkpoints
from fedmoe.runs.identity import identity, settings_text
from fedmoe.runs.roster import is_federated
from fedmoe.runs.seal import SEAL, TEXTS, Seal, check_files, read_seal, restore, sha256, write_seal
from fedmoe.system.files import expanded, json_file, write_text
from fedmoe.system.locks import alone_in

if TYPE_CHECKING:
    from fedmoe.report.ledger import Record
    from fedmoe.runs.checkpoint import Checkpoint
    from fedmoe.runs.server_side import ServerSide

Resume = Literal["no", "auto", "anyway"]
"""`no`: always a new folder. `auto`: resume the interrupted run of this name, if it is still the
same. `anyway`: also if config, code, model or processor have changed."""

LEDGER = "ledger.jsonl"
FIRST = {"run-id", "config.yaml", "environment.json", "manifest.json"}
"""Files that a run's folder may hold before its ledger."""
TOLD = {"libraries", "device", "processor", "threads"}
"""Parts of an identity that people can read; the others are digests."""


@dataclass(frozen=True, eq=False)
class Found:
    """A run's folder, locked by this process."""

    folder: Path
    identity: dict[str, str]
    run_id: str
    """Drawn when the run began, and the same after every interruption."""
    checkpoint: Checkpoint | None = None
    """Where it resumes; None for one that begins."""
    ended: bool = False
    """True if nothing is left to do but the report."""
    records: Sequence[Record] = ()
    """The lines of its ledger, those of an interrupted round included."""


@contextmanager
def find(server: ServerSide, resume: Resume) -> Iterator[Found]:
    """Find or make the folder of a run, and lock it for as long as it is worked on.

    Raises:
        FedMoEError: the folder cannot be made; another process works in it; the run in it is
            another one (what has changed is named); no whole checkpoint is left; its ledger is gone
            or was edited. What was edited of its smaller files is written again, and said.
    """
    e = server.setup.experiment
    parent, name = expanded(e.simulation.folder), e.name
    mine = identity(server)
    folder = None if resume == "no" else latest(parent, name)
    if folder is not None and not _is_a_run(folder):
        folder = None
    made = folder or new_folder(parent, name)
    check_files(made)
    with alone_in(made):
        seal = read_seal(made)
        records = _records(made, sealed=seal is not None)
        if folder is None or not (records or seal or has_checkpoints(made)):
            _clear(made)
            yield Found(made, mine, _run_id(made))
            return
        layout, ledger = server.first_state().adapter.layout, (folder / LEDGER).read_bytes()
        ended = seal is not None or (bool(records) and records[-1]["kind"] == "end")
        checkpoint, faults = (None, []) if ended else newest(folder, layout, ledger)
        if ended:
            seal = seal or _first_seal(folder, ledger)
            _check_ledger(folder, seal, ledger, resume)
        elif checkpoint:
            seal = checkpoint.seal
        if resume == "auto":
            # Without a checkpoint a run that has not ended starts again: only its settings count.
            theirs = seal.identity if seal and ended else {}
            theirs = checkpoint.about["identity"] if checkpoint else theirs
            _check_same(folder, server, theirs, mine)
        if checkpoint is not None:
            _check_fits(folder, server, checkpoint)
        for fault in faults:
            warnings.warn(
                f"{fault}; the run resumes from an older one", FedMoEWarning, stacklevel=2
            )
        if seal:
            restore(folder, {**seal.texts, **_manifest(server, records, ended)})
        if ended:
            remove_checkpoints(folder)  # it may have been killed before it did so itself
        elif checkpoint is None:
            _check_begun(folder, records)
            _clear(folder)
        yield Found(folder, mine, _run_id(folder), checkpoint, ended, records if checkpoint else ())


def _is_a_run(folder: Path) -> bool:
    """Return whether a folder of that name is a run's, even one that died in its first moment."""
    # A name with a dot in front is the lock's, or that of a file not yet in its place.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    kept = "run-id" in names and (names <= FIRST or SEAL in names or has_checkpoints(folder))
    return LEDGER in names or kept or not names


def _records(folder: Path, *, sealed: bool) -> list[Record]:
    """Return the lines of a ledger; none of a run that died before the first."""
    if (folder / LEDGER).exists():
        return read_ledger(folder / LEDGER)
    if sealed or has_checkpoints(folder):
        raise CheckpointError(
            f"{folder / LEDGER} is gone, and the run's other files are there: without it nothing "
            "can be resumed or reported. Restore it from a backup, or use --resume no for a new "
            "folder"
        )
    return []


def _check_begun(folder: Path, records: Sequence[Record]) -> None:
    """Refuse to start again where rounds were finished, or privacy was spent."""
    if any(r["kind"] == "private" or (r["kind"] == "round" and r["round"] > 1) for r in records):
        raise CheckpointError(
            f"{folder} has rounds in its {LEDGER} and none of its checkpoints: they are gone, and "
            "with them the adapter. Restore them from a backup, or use --resume no for a new folder"
        )


def _first_seal(folder: Path, ledger: bytes) -> Seal:
    """Seal a run that ended without a seal: killed at its last moment, or of an older version."""
    said = f"{folder} has no {SEAL}: whether its files were edited cannot be told; sealed as found"
    warnings.warn(said, FedMoEWarning, stacklevel=2)
    texts = {name: (folder / name).read_text() for name in TEXTS if (folder / name).exists()}
    write_seal(folder, seal := Seal(texts, len(ledger), sha256(ledger)))
    return seal


def _check_ledger(folder: Path, seal: Seal, ledger: bytes, resume: Resume) -> None:
    """Refuse a run that has ended and whose ledger was edited since."""
    if sha256(ledger) == seal.ledger:
        return
    said = (
        f"{folder / LEDGER} was edited or damaged since the run ended: expected "
        f"{seal.ledger_bytes} bytes of sha256 {seal.ledger[:12]}, found {len(ledger)} of "
        f"{sha256(ledger)[:12]}"
    )
    if resume != "anyway":
        raise CheckpointError(
            f"{said}. Restore it from a backup; --resume anyway reports it as it is, --resume no "
            "takes a new folder"
        )
    warnings.warn(said, FedMoEWarning, stacklevel=3)


def _manifest(server: ServerSide, records: Sequence[Record], ended: bool) -> dict[str, str]:
    """Return the text of `manifest.json` by its name; nothing where clients may yet change it."""
    accounts = [r for r in records if r["kind"] == "rows"]
    if accounts and not ended:
        return {}  # the recorder writes it again
    rows = {r["client"]: RowCounts(**r["rows"]) for r in accounts}
    names = {r["client"]: r["name"] for r in accounts}
    made = accounts_manifest(rows, names) if rows else server.facts.as_manifest()
    return {"manifest.json": json_file(made)}


def latest(parent: Path, name: str) -> Path | None:
    """Return the folder of the last run of that name: `name`, or the highest of `name-2`, ..."""
    found = None
    for folder in _named(parent, name):
        if not folder.is_dir():
            return found
        found = folder


def new_folder(parent: Path, name: str) -> Path:
    """Make the folder `parent/name`, or, if that exists, the first free one of `name-2`, ...

    Raises:
        FedMoEError: it cannot be made.
    """
    while True:
        folder = next(folder for folder in _named(parent, name) if not folder.is_dir())
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # a file, or another process was faster
            if not folder.is_dir():
                raise FedMoEError(f"{folder} is a file; name another simulation.folder") from None
        except OSError as error:
            raise FedMoEError(f"{folder} cannot be made: {error.strerror}") from error


def _named(parent: Path, name: str) -> Iterator[Path]:
    return (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))


def _check_same(
    folder: Path, server: ServerSide, theirs: dict[str, str], mine: dict[str, str]
) -> None:
    """Refuse to resume another run than was interrupted, or than ended."""
    if nameless := untold(server.setup.experiment):
        raise CheckpointError(
            f"{folder} holds a run that cannot be resumed, as nobody can tell whether its code has "
            f"changed: {'; '.join(nameless)}. Use --resume anyway to resume it regardless, "
            "--resume no for a new folder"
        )
    differ = _settings_that_differ(folder, server)
    changed = [what for what in mine if theirs and mine[what] != theirs.get(what)]
    if not theirs and differ:
        changed = ["config"]
    if not changed:
        return
    told = {what: f": {theirs.get(what, 'unknown')} then, {mine[what]} now" for what in TOLD}
    told["config"] = f" ({'; '.join(differ[:5])})" if differ else ""
    raise CheckpointError(
        f"{folder} holds a run that cannot be resumed as it was: changed since: "
        f"{', '.join(what + told.get(what, '') for what in changed)}. Use --resume anyway to "
        "resume it nevertheless, --resume no for a new folder"
    )


def _check_fits(folder: Path, server: ServerSide, checkpoint: Checkpoint) -> None:
    """Refuse to resume with other clients or tiers than the checkpoint is of."""
    there = len(checkpoint.by_client), sorted(checkpoint.state.rescalers)
    number = there[0] if is_federated(server.setup.experiment) else len(server.members)
    here = number, sorted(server.setup.top_ks)
    if there != here:
        raise CheckpointError(
            f"{folder} holds a run of {there[0]} clients in tiers {', '.join(there[1])}; now there "
            f"are {here[0]} in {', '.join(here[1])}. Use --resume no for a new folder"
        )


def _settings_that_differ(folder: Path, server: ServerSide) -> list[str]:
    """Return the lines of the settings that the other run lacks, as `- old` and `+ new`."""
    path, text = folder / "config.yaml", settings_text(server.setup.experiment)
    try:
        theirs = settings_text(load_experiment(path)).splitlines()
    except ConfigError:
        # It may name what no file can hold, such as rows in memory: then its text has to do.
        kept = {key: parse(text, "")[key] for key in ("simulation", "quorum")}
        try:
            theirs = dump(read_yaml(path) | kept).splitlines()
        except ConfigError:
            return ["its config.yaml is no longer valid"]
    ours = text.splitlines()
    gone = [f"- {line.strip()}" for line in theirs if line not in ours]
    return gone + [f"+ {line.strip()}" for line in ours if line not in theirs]


def _run_id(folder: Path) -> str:
    """Read a run's name from its file, which is written if there is none."""
    path = folder / "run-id"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


def _clear(folder: Path) -> None:
    """Remove the files of a run that was interrupted before its first checkpoint."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

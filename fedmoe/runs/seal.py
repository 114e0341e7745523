"""The small files of a run's folder as the run wrote them, by which a later process checks them.

A checkpoint holds the seal of a run that has not ended, `seal.json` that of one that has. What was
edited or damaged since is said and written again as it was; a ledger cannot be, so a run whose
ledger was edited is refused.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmoe.errors import CheckpointError, FedMoEWarning
from fedmoe.system.files import write_json, write_text

SEAL = "seal.json"
TEXTS = ("run-id", "config.yaml", "environment.json")
FILES = (
    *TEXTS,
    "manifest.json",
    SEAL,
    "ledger.jsonl",
    "activations.npz",
    "scores.json",
    "test-scores.json",
    "adapter-last.safetensors",
    "adapter-best.safetensors",
    "summary.md",
    "report.html",
)
"""All that a run writes by one name; a folder of such a name is nobody's but a mistake."""


@dataclass(frozen=True)
class Seal:
    """The texts of a run's small files, and a digest of its ledger."""

    texts: Mapping[str, str]
    ledger_bytes: int
    ledger: str
    """sha256 of so many bytes of the ledger."""

    @property
    def identity(self) -> dict[str, str]:
        """The run's identity, as its `environment.json` says; {} where nothing can be read."""
        try:
            return json.loads(self.texts["environment.json"])["identity"]
        except (ValueError, KeyError, TypeError):
            return {}

    def fault(self, ledger: bytes) -> str:
        """Return what is wrong with a ledger that must begin as the sealed one; empty if nothing.

        Bytes after the sealed ones are those of an interrupted round.
        """
        if len(ledger) < self.ledger_bytes:
            return f"continues after {self.ledger_bytes} bytes of a ledger of {len(ledger)}"
        if (found := sha256(ledger[: self.ledger_bytes])) == self.ledger:
            return ""
        return (
            f"continues a ledger whose first {self.ledger_bytes} bytes have sha256 "
            f"{self.ledger[:12]}; ledger.jsonl was edited or damaged since: they have {found[:12]}"
        )


def read_seal(folder: Path) -> Seal | None:
    """Return the seal of a run that has ended; None without one, as of an older version.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / SEAL
    if not path.exists():
        return None
    try:
        return Seal(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. Remove it if you trust the other files of the run"
        ) from error


def write_seal(folder: Path, seal: Seal) -> None:
    """Write the seal of a run that has ended."""
    write_json(folder / SEAL, asdict(seal))


def restore(folder: Path, texts: Mapping[str, str]) -> None:
    """Write again every file of `texts` that holds another text, and say so in a warning each."""
    for name, text in texts.items():
        path = folder / name
        found = path.read_bytes() if path.exists() else None
        if found != text.encode():
            write_text(path, text)
            said = f"{path} {_differs(text, found)}; it is written again as it was"
            warnings.warn(said, FedMoEWarning, stacklevel=2)


def check_files(folder: Path) -> None:
    """Refuse a run's folder in which a folder has taken the place of a file.

    Raises:
        CheckpointError: with the names of all.
    """
    if wrong := [str(folder / name) for name in FILES if (folder / name).is_dir()]:
        raise CheckpointError(
            f"{', '.join(wrong)}: expected a file, found a folder. Move it away, and restore the "
            "file from a backup if the run has not ended"
        )


def sha256(data: bytes | str) -> str:
    """Return the sha256 of bytes, or of a text as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _differs(expected: str, found: bytes | None) -> str:
    """Return where a file differs from what the run wrote, as the end of a sentence."""
    if found is None:
        return "is gone"
    theirs, ours = found.decode(errors="replace").splitlines(), expected.splitlines()
    there = [line.strip() for line in theirs if line not in ours]
    wanted = [line.strip() for line in ours if line not in theirs]
    if not there + wanted:
        return f"was edited: expected sha256 {sha256(expected)[:12]}, found {sha256(found)[:12]}"
    return f"was edited or damaged: expected {_some(wanted)}, found {_some(there)}"


def _some(lines: Sequence[str]) -> str:
    if not lines:
        return "nothing"
    return f"{lines[0]!r:.120}" + (f" and {len(lines) - 1} more lines" if lines[1:] else "")

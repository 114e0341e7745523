"""The runs in a folder, read again only when they have changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import GrowingLedger
from fedmoe.report.run import Run, read_run
from fedmoe.report.units import bytes_text
from fedmoe.watch.read_state import run_state
from fedmoe.watch.state import FolderState, RunState, State, Unreadable

LEDGER = "ledger.jsonl"
PATTERNS = (LEDGER, f"*/{LEDGER}", f"*/*/{LEDGER}", f"*/*/*/{LEDGER}")
"""A run; a folder of runs; a comparison with cases; a folder of comparisons."""
MOST_BYTES = 4 * 10**6
"""Bytes of a ledger that the server of a live page reads at a look: less than a second's work."""
PATIENCE = 1.0
"""Seconds that a request waits for another one that reads the same run."""


@dataclass(eq=False)
class Known:
    """The part of a run that was read so far; one request at a time reads on."""

    ledger: GrowingLedger
    stamp: Any = None
    """Of the files as they were when `run` was made of them."""
    run: Run | None = None
    lock: Lock = field(default_factory=Lock)


class WatchedFolder:
    """A run's folder, or one with runs in it, whose state is read again and again."""

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, most_bytes: int | None = None
    ) -> None:
        """Watch `folder`.

        Args:
            most_bytes: bytes of a run's ledger to read at a look, so that none holds up the others;
                by default all.

        Raises:
            FedMoEError: it does not exist, or there is no run in it.
        """
        self.folder, self.clock, self.most_bytes = folder, clock, most_bytes
        self._known: dict[Path, Known] = {}
        if not folder.is_dir():
            fault = "is a file" if folder.exists() else "does not exist"
            raise FedMoEError(
                f"{folder} {fault}; name the folder of a run, or a folder that contains runs"
            )
        if not self._folders():
            raise FedMoEError(
                f"{folder} holds no {LEDGER}, nor does any folder in it: no run was started here. "
                "Runs are stored where simulation.folder of their config says, by default in runs/"
            )

    @property
    def is_run(self) -> bool:
        """True if the folder is itself that of a run."""
        return (self.folder / LEDGER).exists()

    def read(self) -> FolderState:
        """Return the state of all runs; one that cannot be read does not hide the others."""
        runs = tuple(self._read(folder) for folder in self._folders())
        planned = None if self.is_run else self._planned()
        return FolderState(self.title, runs, planned)

    def run_named(self, name: str) -> RunState | Unreadable | None:
        """Return the state of the run of a name, without a look at the others; None without one."""
        found = [folder for folder in self._folders() if self._name(folder) == name]
        return self._read(found[0]) if found else None

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def read_run(self) -> RunState:
        """Return the state of the run whose folder this is.

        Raises:
            FedMoEError: its ledger is still empty, or damaged.
        """
        run = self._read(self.folder)
        if isinstance(run, Unreadable):
            raise FedMoEError(run.error)
        return run

    def read_either(self) -> State:
        """Return the state of the run, or of all runs where the folder is not that of a run."""
        return self.read_run() if self.is_run else self.read()

    def _folders(self) -> list[Path]:
        if self.is_run:
            return [self.folder]
        return sorted(path.parent for pattern in PATTERNS for path in self.folder.glob(pattern))

    def _name(self, folder: Path) -> str:
        inner = folder.relative_to(self.folder).as_posix()
        name = self.title if folder == self.folder else inner
        return name.encode(errors="backslashreplace").decode()  # a name need not be UTF-8

    def _read(self, folder: Path) -> RunState | Unreadable:
        name = self._name(folder)
        try:
            run, last_line = self._read_if_changed(folder)
            return run_state(run, name, last_line, self.clock())
        except (FedMoEError, OSError) as error:
            return Unreadable(name, str(error))
        except Exception as error:  # no content of these files may hide the other runs
            cause = f"{type(error).__name__}: {error}"
            return Unreadable(name, f"{folder}: its files are not those of a run ({cause})")

    def _read_if_changed(self, folder: Path) -> tuple[Run, float]:
        ledger = folder / LEDGER
        about = ledger.stat()
        # The counts are written after the round's line, so their time counts as well.
        counts = folder / "activations.npz"
        stamp = about.st_size, about.st_mtime_ns, counts.exists() and counts.stat().st_mtime_ns
        known = self._known.setdefault(folder, Known(GrowingLedger(ledger)))
        if known.lock.acquire(timeout=PATIENCE):
            try:
                if known.stamp != stamp and self._read_on(known, folder, about.st_size):
                    known.stamp = stamp
            finally:
                known.lock.release()
        if known.run is None:
            raise FedMoEError(f"{ledger} is being read, for another page")
        return known.run, about.st_mtime

    def _read_on(self, known: Known, folder: Path, size: int) -> bool:
        """Return whether all is read; a run that was shown before is shown as it was meanwhile."""
        ledger = known.ledger
        if not ledger.read(self.most_bytes):
            if known.run:
                return False
            raise FedMoEError(
                f"{ledger.path} is long: {bytes_text(ledger.size)} of {bytes_text(size)} are read; "
                "a moment"
            )
        if not ledger.records:
            raise FedMoEError(f"{ledger.path} has no line yet; the run is only just beginning")
        known.run = read_run(folder, ledger.records)
        return True

    def _planned(self) -> int | None:
        """Return the number of runs that a comparison recorded after its first run."""
        try:
            found = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
            return int(found["num_planned"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

"""The runs in a folder, read again only when they have changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import read_ledger
from fedmoe.report.run import Run, read_run
from fedmoe.watch.read_state import run_state
from fedmoe.watch.state import FolderState, RunState, State, Unreadable

LEDGER = "ledger.jsonl"
PATTERNS = (LEDGER, f"*/{LEDGER}", f"*/*/{LEDGER}", f"*/*/*/{LEDGER}")
"""A run; a folder of runs; a comparison with cases; a folder of comparisons."""


class WatchedFolder:
    """A run's folder, or one with runs in it, whose state is read again and again."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Watch `folder`.

        Raises:
            FedMoEError: it does not exist, or there is no run in it.
        """
        self.folder, self.clock = folder, clock
        self._known: dict[Path, tuple[Any, Run]] = {}
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
        return FolderState(self.folder.resolve().name, runs, planned)

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

    def _read(self, folder: Path) -> RunState | Unreadable:
        inner = folder.relative_to(self.folder).as_posix()
        name = folder.resolve().name if folder == self.folder else inner
        name = name.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
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
        if folder not in self._known or self._known[folder][0] != stamp:
            if not read_ledger(ledger):
                raise FedMoEError(f"{ledger} has no line yet; the run is only just beginning")
            self._known[folder] = stamp, read_run(folder)
        return self._known[folder][1], about.st_mtime

    def _planned(self) -> int | None:
        """Return the number of runs that a comparison recorded after its first run."""
        try:
            found = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
            return int(found["num_planned"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

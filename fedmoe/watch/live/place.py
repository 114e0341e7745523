"""The runs in a folder, read again only when they have changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import read_ledger
from fedmoe.report.run import Run, read_run
from fedmoe.watch.live.state import RunNow, Sample, Unreadable, state_of

LEDGER = "ledger.jsonl"
PATTERNS = (LEDGER, f"*/{LEDGER}", f"*/*/{LEDGER}", f"*/*/*/{LEDGER}")
"""A run; a folder of runs; a comparison with cases; a folder of comparisons."""


@dataclass(frozen=True)
class PlaceNow:
    """All runs of a folder as they stand."""

    title: str
    runs: tuple[RunNow | Unreadable, ...]
    """By folder."""
    num_planned: int | None = None
    """Runs that a comparison asks for, as far as it has said."""

    @property
    def num_finished(self) -> int:
        """Runs that have ended."""
        return sum(isinstance(r, RunNow) and r.phase == "finished" for r in self.runs)

    @property
    def num_known(self) -> int:
        """Runs that there are, or are to be."""
        # What a comparison plans are its results; the runs of its search come on top.
        search = sum(run.run.startswith("search/") for run in self.runs)
        return max((self.num_planned or 0) + search, len(self.runs))

    @property
    def pace(self) -> str:
        """Where the runs are, in one line."""
        at_work = [r.run for r in self.runs if isinstance(r, RunNow) and r.phase == "running"]
        doing = f"; at work: {', '.join(at_work)}" if at_work else ""
        return f"{self.num_finished} of {self.num_known} runs finished{doing}"

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json_text`."""
        runs = [run.as_json() for run in self.runs]
        return {
            "kind": "runs",
            "title": self.title,
            "num_planned": self.num_planned,
            "num_finished": self.num_finished,
            "runs": runs,
        }


class Place:
    """A run's folder, or one with runs in it, to be looked at again and again."""

    def __init__(
        self, folder: Path, sample: Sample | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Look at `folder`.

        Raises:
            FedMoEError: it does not exist, or there is no run in it.
        """
        self.folder, self.sample, self.clock = folder, sample, clock
        self._known: dict[Path, tuple[Any, Run]] = {}
        if not folder.is_dir():
            what = "a file" if folder.exists() else "not there"
            raise FedMoEError(f"{folder} is {what}; expected a run's folder, or one with runs")
        if not self._folders():
            raise FedMoEError(
                f"{folder} holds no {LEDGER}, nor does any folder in it: no run was begun here; "
                "runs are where simulation.folder of their config says, by default in runs/"
            )

    @property
    def is_run(self) -> bool:
        """Whether the folder is itself a run's."""
        return (self.folder / LEDGER).exists()

    def look(self) -> PlaceNow:
        """All runs as they stand now; one that cannot be read does not hide the others."""
        runs = tuple(self._look(folder) for folder in self._folders())
        title = self.folder.resolve().name
        return PlaceNow(title, runs, None if self.is_run else self._planned())

    def one(self) -> RunNow:
        """The run whose folder this is.

        Raises:
            FedMoEError: its ledger says nothing yet, or is damaged.
        """
        run = self._look(self.folder)
        if isinstance(run, Unreadable):
            raise FedMoEError(run.error)
        return run

    def _folders(self) -> list[Path]:
        if self.is_run:
            return [self.folder]
        return sorted(path.parent for pattern in PATTERNS for path in self.folder.glob(pattern))

    def _look(self, folder: Path) -> RunNow | Unreadable:
        name = folder.resolve().name if folder == self.folder else self._name(folder)
        name = name.encode(errors="backslashreplace").decode()  # a name need not be UTF-8
        try:
            run, last_line = self._read(folder)
            return state_of(run, name, last_line, self.clock(), self.sample)
        except (FedMoEError, OSError) as error:
            return Unreadable(name, str(error))
        except Exception as error:  # whatever is in those files: it must not hide the other runs
            what = f"{type(error).__name__}: {error}"
            return Unreadable(name, f"{folder}: its files are not those of a run ({what})")

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.folder).as_posix()

    def _read(self, folder: Path) -> tuple[Run, float]:
        ledger = folder / LEDGER
        about = ledger.stat()
        # The counts are written after the round's line: their time is part of what has changed.
        counts = folder / "activations.npz"
        stamp = about.st_size, about.st_mtime_ns, counts.exists() and counts.stat().st_mtime_ns
        if folder not in self._known or self._known[folder][0] != stamp:
            if not read_ledger(ledger):
                raise FedMoEError(f"{ledger} has no line yet; the run is only just beginning")
            self._known[folder] = stamp, read_run(folder)
        return self._known[folder][1], about.st_mtime

    def _planned(self) -> int | None:
        """What a comparison says in its own file, which it writes after its first run."""
        try:
            found = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))
            return int(found["num_planned"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

"""Running processes, told apart even where the system gives a number again, and how they ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, as opposed to another one with the same number."""

    pid: int
    started: int
    """Clock ticks since the machine started. `psutil` 7 has wall-clock seconds instead, which are
    other ones after the clock was set: two processes could disagree about a third."""

    @property
    def name(self) -> str:
        """A name for files that belong to it."""
        return f"{self.pid}-{self.started}"

    def alive(self) -> bool:
        """Return whether it still runs; a zombie, which waits for its parent, does not."""
        return process_of(self.pid) == self


def process_of(pid: int) -> Process | None:
    """Return the running process with this number, if there is one (Linux)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything; fields are counted from its end.
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else Process(pid, int(numbers[18]))


def ending(exit_code: int) -> str:
    """Say how a process ended: `SIGKILL`, or `exit code 1`."""
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"

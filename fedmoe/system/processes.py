"""Running processes, told apart even where their numbers come again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Node:
    """The process that a worker lives and dies with."""

    pid: int
    started: int
    """Clock ticks from the machine's start: process numbers come again."""

    @property
    def name(self) -> str:
        """What its worker's files are called."""
        return f"{self.pid}-{self.started}"

    def alive(self) -> bool:
        """Whether it still runs; one that has ended and waits for its parent does not."""
        return node_of(self.pid) == self


def node_of(pid: int) -> Node | None:
    """The running process of this number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything; what follows is counted from its end.
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else Node(pid, int(numbers[18]))

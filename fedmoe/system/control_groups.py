"""Linux control groups: where a process's own lie, what they say, and what was killed in them.

Without torch: whoever only passes a task on looks here, too.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
EVENTS = ("memory.events", "memory.oom_control")
"""Where `oom_kill` stands: version 2, and 1."""


def folders(root: Path, controller: str, process: int | str = "self") -> list[Path]:
    """The folders of a process's control groups, innermost first: version 2, then 1."""
    found = []
    for line in text(root / f"proc/{process}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [controller, controllers] if controllers else ["", "unified"]
        for mount in dict.fromkeys(mounts):
            top = root / "sys/fs/cgroup" / mount
            # Inside a container the path is often the host's: then the mount is the group itself.
            inner = top / path.lstrip("/")
            found += [f for f in (inner, *inner.parents) if f == top or top in f.parents]
    return found


def oom_events(process: int, root: Path = ROOT) -> Path | None:
    """The file in which the kernel counts what it kills for memory in a process's group.

    None where there is none to read. It outlives the process: look for it before that dies.
    """
    paths = (folder / name for folder in folders(root, "memory", process) for name in EVENTS)
    return next((path for path in paths if "oom_kill" in table(path)), None)


def oom_kills(events: Path | None) -> int:
    """How many processes of the group were killed for want of memory so far."""
    return table(events).get("oom_kill", 0) if events else 0


def table(path: Path) -> dict[str, int]:
    """The first number of each line, by its word."""
    rows = (line.replace(":", " ").split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def number(path: Path) -> int | None:
    """The number that a file holds; None for another word: "max" and "-1" are no limit."""
    return digits(text(path).strip())


def digits(word: str) -> int | None:
    """A word as a number, if it is one."""
    return int(word) if word.isdigit() else None


def text(path: Path) -> str:
    """What a file says; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""

"""Linux control groups: the folders of a process's groups, their limits, and kills for memory."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
EVENTS = ("memory.events", "memory.oom_control")
"""The files with the line `oom_kill`, of version 2 and 1."""


def folders(root: Path, controller: str, process: int | str = "self") -> list[Path]:
    """Return the folders of a process's control groups, innermost first: version 2, then 1."""
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
    """Return the file in which the kernel counts its kills for memory in a process's group, if any.

    The file outlives the process, but can be found only while that is alive.
    """
    paths = (folder / name for folder in folders(root, "memory", process) for name in EVENTS)
    return next((path for path in paths if "oom_kill" in table(path)), None)


def oom_kills(events: Path | None) -> int:
    """Count the processes of the group that were killed for want of memory so far."""
    return table(events).get("oom_kill", 0) if events else 0


def table(path: Path) -> dict[str, int]:
    """Return the first number of each line, by the line's first word."""
    rows = (line.replace(":", " ").split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def number(path: Path) -> int | None:
    """Return the number in a file; None for words: "max" and "-1" mean no limit."""
    return digits(text(path).strip())


def digits(word: str) -> int | None:
    """Return a word as a number, if it is one."""
    return int(word) if word.isdecimal() else None


def text(path: Path) -> str:
    """Return the content of a file, or nothing if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""

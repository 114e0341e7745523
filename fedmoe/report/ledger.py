"""The events of a run, one JSON line each, readable after any crash."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, get_args

from fedmoe.errors import FedMoEError
from fedmoe.system.files import write_bytes
from fedmoe.system.json_text import json_text

Kind = Literal[
    "run",
    "roster",
    "rows",
    "client",
    "worker",
    "fault",
    "evaluation",
    "unscored",
    "withheld",
    "private",
    "robust",
    "round",
    "resumed",
    "stopped",
    "end",
]

TAIL = 4096
"""Bytes before the place up to which a ledger was read, by which it is recognised."""
Record = dict[str, Any]
"""One line of a ledger; `kind` says which other keys it has."""


class Ledger:
    """Appends records to a file; a resumed run continues in the file that it left.

    If the file cannot be written, every method raises an OSError with its name as `filename`.
    """

    def __init__(self, path: Path) -> None:
        self._sha256 = hashlib.sha256(_drop_torn_line(path))
        self.path = path
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; a `round` or `end` and all lines before it survive a power cut."""
        assert record["kind"] in get_args(Kind), record
        with self._named():
            self._file.write(line := json_text(record) + "\n")
            self._file.flush()
            self._sha256.update(line.encode())
            if record["kind"] in ("round", "end"):
                os.fsync(self._file.fileno())

    def sync(self) -> int:
        """Return the size of the file now, all of which survives a power cut."""
        with self._named():
            os.fsync(self._file.fileno())
            return self._file.tell()

    @property
    def sha256(self) -> str:
        """The digest of all lines that this process found or wrote."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Close the file."""
        with self._named():
            self._file.close()  # tries again what could not be written

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the file's name, which the system leaves out of the errors of an open file."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shorten(path: Path, size: int, records: Sequence[Record]) -> None:
    """Cut a ledger to its first bytes and add records behind them, both or neither."""
    lines = "".join(json_text(record) + "\n" for record in records)
    write_bytes(path, path.read_bytes()[:size], lines.encode())


def read_ledger(path: Path) -> list[Record]:
    """Return a ledger's records in the order they were written.

    An interrupted run may leave a last line without its newline, which is left out.

    Raises:
        FedMoEError: no such file, or a damaged line; the message gives its number.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FedMoEError(f"{path}: cannot be read: {error.strerror}") from error
    *lines, _torn = content.split(b"\n")
    return [_record(path, number, line) for number, line in enumerate(lines, start=1)]


class GrowingLedger:
    """A ledger that is read as it grows: every line once, unless what was read was cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.size = 0
        """Bytes that were read."""
        self._tail = b""

    def read(self, most_bytes: int | None = None) -> bool:
        """Read on, about so many bytes at most, and return whether the end was reached."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.size - len(self._tail))
                if file.read(len(self._tail)) != self._tail:  # a resumed run writes on from before
                    self.records, self.size, self._tail = [], 0, b""
                    file.seek(0)
                # To the end of a line, however long: else it would never be read.
                data = file.read(-1 if most_bytes is None else most_bytes) + file.readline()
                at_end = not file.read(1)
        except OSError as error:
            raise FedMoEError(f"{self.path}: cannot be read: {error.strerror}") from error
        *lines, torn = data.split(b"\n")
        first = len(self.records) + 1
        self.records += [_record(self.path, n, line) for n, line in enumerate(lines, first)]
        self.size += (used := len(data) - len(torn))
        self._tail = (self._tail + data[:used])[-TAIL:]
        return at_end


def follow_ledger(
    path: Path, *, sleep: Callable[[float], None] = time.sleep, seconds: float = 1.0
) -> Iterator[Record]:
    """Yield a ledger's records as they are written, up to the line that ends the run.

    A resumed run cuts off what it does again; those records are yielded again, too.
    """
    seen: list[Record] = []
    while True:
        found = read_ledger(path)
        pairs = enumerate(zip(seen, found, strict=False))
        common = next((i for i, (old, new) in pairs if old != new), min(len(seen), len(found)))
        yield from found[common:]
        seen = found
        if seen and seen[-1]["kind"] == "end":
            return
        sleep(seconds)


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FedMoEError(f"{path}: line {number} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise FedMoEError(f"{path}: line {number} is not a record; expected a `kind`")
    return record


def _drop_torn_line(path: Path) -> bytes:
    """Cut off what follows the last newline, which a record would continue; return the rest."""
    content = path.read_bytes() if path.exists() else b""
    if (end := content.rfind(b"\n") + 1) < len(content):
        os.truncate(path, end)
    return content[:end]

"""What happened in a run, one JSON line at a time, readable after any crash."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from fedmoe.errors import FedMoEError
from fedmoe.system.json_text import json_text

Kind = Literal["run", "client", "worker", "fault", "evaluation", "round", "resumed", "end"]

Record = dict[str, Any]
"""One line of a ledger; `kind` says which other keys it has."""


class Ledger:
    """Appends records to a file; a resumed run goes on in the file it left.

    Where the file cannot be written, every method raises an OSError whose `filename` it is.
    """

    def __init__(self, path: Path) -> None:
        _drop_torn_line(path)
        self.path = path
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; a `round` or `end` and all lines before it survive a power cut."""
        assert record["kind"] in get_args(Kind), record
        with self._named():
            self._file.write(json_text(record) + "\n")
            self._file.flush()
            if record["kind"] in ("round", "end"):
                os.fsync(self._file.fileno())

    def sync(self) -> int:
        """The size of the file now, all of which survives a power cut."""
        with self._named():
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        with self._named():
            self._file.close()  # tries again what could not be written

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Of an open file the system says that the disk is full, but not which file it is."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_ledger(path: Path) -> list[Record]:
    """Return a ledger's records in the order they were written.

    A last line without its newline is what an interrupted run leaves: it is left out.

    Raises:
        FedMoEError: no such file, or a damaged line; the message has its number.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FedMoEError(f"{path}: cannot be read: {error.strerror}") from error
    *lines, _torn = content.split(b"\n")
    return [_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FedMoEError(f"{path}: line {number} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise FedMoEError(f"{path}: line {number} is no record; expected an object with a `kind`")
    return record


def _drop_torn_line(path: Path) -> None:
    """Cut what follows the last newline, or the next record would be glued to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    if (end := content.rfind(b"\n") + 1) < len(content):
        os.truncate(path, end)

"""Local JSON, JSON-lines, CSV and Parquet files of instructions and responses."""

import csv
import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from fedmoe.data.columns import Row, too_many
from fedmoe.data.table import Table
from fedmoe.errors import DataError
from fedmoe.section import section


@section
class LocalFiles(Table):
    """Rows of one file. The usual column names are found: instruction (+ input or context),
    prompt or question; output, response, completion or answer; or messages (first exchange).

    Of rows with the same prompt the first is kept.
    """

    name: Literal["files"] = "files"
    path: str
    """A .json, .jsonl, .csv or .parquet file; relative to the folder the command runs in."""

    def table(self) -> tuple[str, list[str], list[Row]]:
        """Return the rows of the file; see `read_rows` for the errors."""
        rows = read_rows(Path(self.path))
        return self.path, list(dict.fromkeys(name for _, row in rows for name in row)), rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file with their places, at least one.

    Raises:
        DataError: no such file, an unknown kind of file, or faults inside, each with its line.
    """
    check_is_file(path)
    if (read := READERS.get(path.suffix.lower())) is None:
        raise DataError(f"{path}: unknown kind of file; expected one of {', '.join(READERS)}")
    try:
        rows = list(read(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return rows


def check_is_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one of the files in it")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such file; there is no folder {path.parent} either")
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    raise DataError(
        f"{path}: no such file" + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):
            # Many files called .json hold one object a line.
            yield from _read_json_lines(path)
            return
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, got {type(rows).__name__}")
    faults = [
        f"row {n}: not an object" for n, row in enumerate(rows, 1) if not isinstance(row, dict)
    ]
    if faults:
        raise too_many(str(path), "row(s) cannot be used", faults)
    yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))


def _read_json_lines(path: Path) -> Iterator[Row]:
    faults = []
    # Not splitlines: it also cuts at U+2028, which JSON text may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}: broken JSON: {error.msg} (column {error.colno})")
            continue
        if isinstance(row, dict):
            yield f"{path}:{number}", row
        else:
            faults.append(f"{path}:{number}: expected an object, got {type(row).__name__}")
    if faults:
        raise too_many(str(path), "line(s) cannot be read", faults)


def _read_csv(path: Path) -> Iterator[Row]:
    faults = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                # csv files what is over under None, and pads what is missing with None.
                if None in row or None in row.values():
                    faults.append(f"{path}:{reader.line_num}: not as many fields as the header has")
                yield f"{path}:{reader.line_num}", row
        except csv.Error as error:
            faults.append(f"{path}:{reader.line_num}: broken CSV: {error}")
    if faults:
        raise too_many(str(path), "line(s) cannot be read", faults)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: broken Parquet: {error}") from error
    yield from ((f"row {n}", row) for n, row in enumerate(table.to_pylist(), 1))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""One reader for each kind of file, by the end of its name."""

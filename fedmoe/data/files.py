"""Local JSON, JSON-lines, CSV and Parquet files of instructions and responses."""

import csv
import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from fedmoe.data.columns import Row, Unusable, columns_of
from fedmoe.data.conversations import RowFault, json_fault, loads, without_nulls
from fedmoe.data.table import Table
from fedmoe.errors import DataError
from fedmoe.section import section
from fedmoe.system.files import expanded


@section
class LocalFiles(Table):
    """Rows of one file. The usual column names are found: instruction (+ input or context),
    prompt or question; output, response, completion or answer; for conversations messages or
    conversations (ShareGPT), or system and history beside an instruction.

    Rows are dropped as repeated only if prompt, response and label are those of an earlier row,
    letter by letter. Rows with the same prompt and other responses are kept, in one split.
    """

    name: Literal["files"] = "files"
    path: str
    """A .json, .jsonl, .csv or .parquet file; relative to the folder the command runs in."""

    def table(self) -> tuple[str, list[str], list[Row | Unusable]]:
        """Return the rows of the file; see `read_rows` for the errors."""
        rows = read_rows(self.file())
        return self.path, columns_of(rows), rows

    def file(self) -> Path:
        """Return the path of the file."""
        return expanded(self.path)


def read_rows(path: Path) -> list[Row | Unusable]:
    """Return the rows of a file with their places, at least one; blank lines are no rows.

    Raises:
        DataError: no such file, an unknown kind of file, or one that is broken as a whole.
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


def _read_json(path: Path) -> Iterator[Row | Unusable]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        rows = loads(text)
    except RowFault as fault:
        raise DataError(f"{path}: {fault}") from fault
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            # Many files called .json hold one object a line.
            yield from _read_json_lines(path)
            return
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: broken JSON: {json_fault(error)}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield _object(f"row {number}", row)


def _object(where: str, row: Any) -> Row | Unusable:
    if isinstance(row, dict):
        return where, row
    return Unusable(where, f"expected an object, got {type(row).__name__}")


def _read_json_lines(path: Path) -> Iterator[Row | Unusable]:
    # Not splitlines: it also cuts at U+2028, which JSON text may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _object(f"{path}:{number}", loads(line))
        except RowFault as fault:
            yield Unusable(f"{path}:{number}", str(fault))
        except (ValueError, RecursionError) as error:
            place = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            yield Unusable(f"{path}:{number}", f"broken JSON: {json_fault(error)}{place}")


def _read_csv(path: Path) -> Iterator[Row | Unusable]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = [*(reader.fieldnames or ())]
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{path}:1: the column {twice[0]!r} is there twice; rename one")
            for row in reader:
                where, (first, *others) = f"{path}:{reader.line_num}", row.values()
                # csv files what is over under None, and pads what is missing with None.
                if None in row or None in others:
                    if (first or "").strip() or any(others):
                        yield Unusable(where, "not as many fields as the header has")
                    continue  # else a line of spaces, as blank as those that csv itself skips
                yield where, row
        except csv.Error as error:
            # Where the next row begins is not known, so the rest cannot even be counted.
            raise DataError(f"{path}:{reader.line_num}: broken CSV: {error}") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: broken Parquet: {error}") from error
    rows = ({k: without_nulls(v) for k, v in row.items()} for row in table.to_pylist())
    yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))


READERS: dict[str, Callable[[Path], Iterator[Row | Unusable]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""One reader for each kind of file, by the end of its name."""

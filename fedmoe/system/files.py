"""Files that are replaced whole: a reader, or a crash, finds the old content or the new."""

import os
import uuid
from pathlib import Path
from typing import Any

from fedmoe.system.json_text import json_text


def expanded(path: Path | str) -> Path:
    """Return a path with `~` written out; one of an unknown user stays as it is.

    >>> expanded("rows.jsonl").name
    'rows.jsonl'
    """
    return Path(os.path.expanduser(path))


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Replace the content of `path` by the parts, one after another; its folder must exist.

    Raises:
        OSError: it cannot be written; `filename` is `path`, and the old content stays.
    """
    # In the same folder, since a rename is atomic within one file system only. Not `tempfile`:
    # its files can be read by their owner alone, and keep that after the rename.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file; the temporary one means nothing
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, survives a power cut
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` by indented JSON; numbers that are not finite become null."""
    write_text(path, json_file(value))


def json_file(value: Any) -> str:
    """Return the text that `write_json` writes."""
    return json_text(value, indent=2) + "\n"

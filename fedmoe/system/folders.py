"""Folders that appear whole or not at all, disks that are full, and the folder of a start."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.system.locks import held

STARTED = "started_in"
"""In a run's `environment.json`: the folder in which it was started, as seen from its own."""


def started_in(run: Path) -> str:
    """Return the working folder, as seen from a run's: so both may be moved together."""
    return os.path.relpath(os.getcwd(), run.resolve())


@contextmanager
def whole_folder(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield an empty folder whose files move to `out` when the block ends well, else are removed.

    It is made in `.NAME.unfinished` beside `out`, which one process at a time may use; what a
    killed process left there is removed by the next one. If `out` does not exist, it appears whole.
    If it does, files are replaced one by one, each whole, and all others stay.

    Args:
        out: the folder to make or to fill; its parents are made, too.
        check: called with `out` at the start and at the end; raises if `out` must stay as it is.

    Raises:
        FedMoEError: `out` cannot be made or written, or another process is making it.
    """
    name = str(out)
    try:
        check(out)
        out = out.resolve()
        workshop = out.with_name(f".{out.name}.unfinished")
        absent = [parent for parent in workshop.parents if not parent.exists()]
        workshop.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; no name
        why = getattr(error, "strerror", None) or error
        raise FedMoEError(f"{name} cannot be made: {why}") from error
    with held(workshop / "lock", f"another process is making {name}"):
        try:
            _check_writable(out, workshop, name)
            made = workshop / "made"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            yield made
            check(out)
            if out.exists():
                for path in made.iterdir():
                    path.replace(out / path.name)
            else:
                made.rename(out)
        finally:
            # Whatever cannot be removed now is removed by the next process.
            shutil.rmtree(workshop, ignore_errors=True)
            with suppress(OSError):  # a parent that is not empty
                for parent in absent:
                    parent.rmdir()


def _check_writable(out: Path, workshop: Path, name: str) -> None:
    """Refuse an existing `out` that no file can be moved into."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FedMoEError(f"{name} is a file; expected a folder, or none yet")
    if not os.access(out, os.W_OK | os.X_OK):
        raise FedMoEError(f"{name} cannot be written: no permission")
    if out.stat().st_dev != workshop.stat().st_dev:
        raise FedMoEError(f"{name} is where a file system begins; name a folder inside it")


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Raise a full or read-only disk as an `OSError` that names `place`, whichever library wrote.

    safetensors 0.8 and tokenizers 0.23 raise exceptions of their own, Python one without a name.

    Raises:
        FedMoEError: a file could be written only in part; numpy does not say why.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy 2.4, about a file that it could write only in part
            raise FedMoEError(f"{place} cannot be written: {error}") from error
        error.filename = error.filename or str(place)
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(place)) from error

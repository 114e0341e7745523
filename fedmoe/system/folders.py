"""A model's folder: written beside its name, it appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from fedmoe.errors import ModelError


@contextmanager
def whole_folder(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """An empty folder whose files are in `out` when the block ends well, and else are removed.

    It lies in `.NAME.unfinished` beside `out`, which one process at a time has; what a killed one
    left there is removed by the next. A folder `out` that was not there appears whole. One that was
    gets file by file: each is the old one or the new one, and others stay as they are.

    Args:
        out: the folder to make or to fill; its parents are made, too.
        check: given `out` at the start and at the end, it raises where what is there must stay.

    Raises:
        ModelError: `out` cannot be made or written, or another process is making it.
    """
    said = str(out)
    try:
        check(out)
        out = out.resolve()
        shop = out.with_name(f".{out.name}.unfinished")
        absent = [parent for parent in shop.parents if not parent.exists()]
        shop.mkdir(parents=True, exist_ok=True)
        lock = (shop / "lock").open("w")
    except (OSError, RuntimeError, ValueError) as error:  # of a loop of links; of no name
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"out {said!r} cannot be made: {why}") from error
    with lock:
        _alone(lock, said)
        try:
            _check_filled(out, shop, said)
            made = shop / "model"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            yield made
            check(out)
            _move(made, out)
        finally:
            # What cannot be removed now is at the next start.
            shutil.rmtree(shop, ignore_errors=True)
            with suppress(OSError):  # a parent that is not empty
                for parent in absent:
                    parent.rmdir()


def _alone(lock: TextIOWrapper, out: str) -> None:
    """Take the lock, which goes with the process."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.fstat(lock.fileno()).st_nlink > 0  # else its owner has just removed it
    except OSError:
        taken = False
    if not taken:
        raise ModelError(f"another process is making out {out!r}")


def _check_filled(out: Path, shop: Path, said: str) -> None:
    """Refuse a folder that is there and that nothing can be moved into."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ModelError(f"out {said!r} is a file; expected a folder, or none yet")
    if not os.access(out, os.W_OK | os.X_OK):
        raise ModelError(f"out {said!r} cannot be written: no permission")
    if out.stat().st_dev != shop.stat().st_dev:
        raise ModelError(f"out {said!r} is where a file system begins; name a folder in it")


def _move(made: Path, out: Path) -> None:
    if out.exists():
        for path in made.iterdir():
            path.replace(out / path.name)
    else:
        made.rename(out)


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Let a disk that is full, or forbids, be an `OSError` that names `place`, whoever wrote.

    safetensors 0.8 and tokenizers 0.23 say so in exceptions of their own, Python without a name.

    Raises:
        ModelError: a file could be written in part; numpy does not say why.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy 2.4, of a file that it could write in part
            raise ModelError(f"{place} cannot be written: {error}") from error
        error.filename = error.filename or str(place)
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(place)) from error

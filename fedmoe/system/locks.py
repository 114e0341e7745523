"""Locks on files and folders, which the kernel releases when their process ends.

`filelock` 4.3 would not do for `held`: it takes `flock`, which a forked worker would keep after the
death of the process that it was forked from, and a killed run could not be resumed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

from fedmoe.errors import FedMoEError


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which is made if need be, without waiting for it.

    Raises:
        FedMoEError: it is held already, by this process or another one, which is named after the
            `refusal`; or the file cannot be made.
    """
    # `lockf` is blind to this process's own locks, and releases them when any of its handles of
    # the file is closed: so look for one before opening another.
    if str(path.resolve()) in (file.path for file in psutil.Process().open_files()):
        raise FedMoEError(f"{refusal} (this process, {os.getpid()})")
    try:
        file = path.open("a+")
    except OSError as error:
        raise FedMoEError(f"{path} cannot be made: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise FedMoEError(f"{refusal} (process {file.read(20) or 'unknown'})") from None
        if not os.fstat(file.fileno()).st_nlink:
            raise FedMoEError(f"{refusal} (it has just finished)")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def alone_in(folder: Path, who: str = "process") -> AbstractContextManager[None]:
    """Keep all others out of a folder; `who` says what works there.

    Raises:
        FedMoEError: another one works there, in this process or another.
    """
    return held(folder / ".lock", f"another {who} is at work in {folder}")


@contextmanager
def turn(fd: int) -> Iterator[None]:
    """Wait for the lock of an open file or folder, and hold it; threads exclude each other too."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)

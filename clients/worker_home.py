"""The process that a node's worker belongs to, and an owner-only folder for workers' sockets.

Only Linux has what this needs: `/proc`, and the identity of the other end of a socket.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO, Self

from fedmoe.errors import FedMoEError
from fedmoe.system.locks import turn
from fedmoe.system.processes import Process, process_of

BACKLOG = 128
SWEEP_SECONDS = 1.0


def node_here() -> Process | None:
    """Return the process that starts one per message, and so needs a worker, if there is one.

    Flower's SuperNode runs `flwr-clientapp` for every message, through a `flower-superexec` that
    ends with it. Ray's actors, and anything that calls the ClientApp from Python, carry out many
    tasks in one process, which keeps the model itself.
    """
    if sys.platform != "linux" or Path(sys.argv[0]).name != "flwr-clientapp":
        return None
    return process_of(os.getppid())


class Home:
    """The folder of this user's workers, closed to all other users."""

    def __init__(self) -> None:
        """Open it, and make it first if need be.

        Raises:
            FedMoEError: it cannot be made, is no folder, or is open to others.
        """
        self.path = _default_path()
        self.fd = _open(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def locked(self) -> AbstractContextManager[None]:
        """Wait for a turn among those who look for a worker, or start one."""
        return turn(self.fd)

    def listen(self, name: str) -> socket.socket:
        """Return a socket that takes calls from now on, in place of any that was there."""
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.sock", dir_fd=self.fd)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address(name))
        listener.listen(BACKLOG)
        return listener

    def connect(self, name: str, seconds: float) -> socket.socket | None:
        """Return a connection to the listener, with a timeout of `seconds`; None if nobody listens.

        Raises:
            FedMoEError: another user listens there.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(seconds)
        try:
            connection.connect(self._address(name))
        except OSError:
            connection.close()
            return None
        if not is_ours(connection):
            connection.close()
            raise FedMoEError(f"{self.path}/{name}.sock belongs to another user; remove it")
        return connection

    def seat(self, name: str) -> int | None:
        """Return the number of the socket's file, which no other gets while somebody listens."""
        try:
            return os.stat(f"{name}.sock", dir_fd=self.fd).st_ino
        except FileNotFoundError:
            return None

    def leave(self, name: str, seat: int | None) -> None:
        """Remove the socket's file, if it still has this number, and its log, if that is empty."""
        if seat is None or self.seat(name) != seat:
            return
        with suppress(FileNotFoundError):
            # The log first: a caller that finds no socket makes both again.
            if not os.stat(f"{name}.log", dir_fd=self.fd).st_size:
                os.unlink(f"{name}.log", dir_fd=self.fd)
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.sock", dir_fd=self.fd)

    def sweep(self) -> None:
        """Remove the sockets of killed workers, on which nobody listens."""
        for path in self.path.glob("*.sock"):
            if connection := self.connect(path.stem, SWEEP_SECONDS):
                connection.close()
            else:
                self.leave(path.stem, self.seat(path.stem))

    def log_path(self, name: str) -> Path:
        """Return the path of a worker's output."""
        return self.path / f"{name}.log"

    def log(self, name: str) -> BinaryIO:
        """Open the same file, to append to it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(f"{name}.log", flags, 0o600, dir_fd=self.fd), "ab")

    def _address(self, name: str) -> str:
        # Not by the folder's own path: an address holds at most 107 bytes, and this is certainly
        # the folder that was checked.
        return f"/proc/self/fd/{self.fd}/{name}.sock"


def is_ours(connection: socket.socket) -> bool:
    """Return whether a process of this user is at the other end."""
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", found)[1] == os.geteuid()


def _default_path() -> Path:
    """Return a path in the session's own folder, if there is one, else with temporary files."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    with suppress(OSError):
        if session and os.stat(session).st_uid == os.geteuid():
            return Path(session) / "fedmoe"
    return Path(gettempdir()) / f"fedmoe-{os.geteuid()}"


def _open(path: Path) -> int:
    try:
        with suppress(FileExistsError):
            path.mkdir(0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FedMoEError(f"{path}: no folder for workers: {error.strerror}") from error
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise FedMoEError(
            f"{path}: belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}; "
            f"expected user {os.geteuid()} and mode 700. Remove it, or set TMPDIR to another folder"
        )
    return fd

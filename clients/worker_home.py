"""Where workers live: the process they belong to, and an owner-only folder for their sockets.

Linux alone tells what is needed here: `/proc`, and who is at the other end of a socket.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from types import TracebackType
from typing import BinaryIO, Self

from fedmoe.errors import FedMoEError
from fedmoe.system.processes import Node, node_of

BACKLOG = 128
SWEEP_SECONDS = 1.0


def node_here() -> Node | None:
    """What starts a process per message, and so needs a worker; None where this process lives on.

    Flower's SuperNode runs `flwr-clientapp` for every message, through a `flower-superexec` that
    ends with it. Ray's actors, and whoever calls the ClientApp from Python, carry out many tasks
    in one process, which keeps the model itself.
    """
    if sys.platform != "linux" or Path(sys.argv[0]).name != "flwr-clientapp":
        return None
    return node_of(os.getppid())


class Home:
    """The folder of this user's workers; nobody else can reach what is in it."""

    def __init__(self) -> None:
        """Make it if need be, and open it.

        Raises:
            FedMoEError: it cannot be made, is no folder, or is open to others.
        """
        self.path = _default_path()
        self.fd = _open(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among those who look for a worker, or start one."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def listen(self, name: str) -> socket.socket:
        """A socket that takes calls from now on, in place of any that was there."""
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.sock", dir_fd=self.fd)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address(name))
        listener.listen(BACKLOG)
        return listener

    def connect(self, name: str, seconds: float) -> socket.socket | None:
        """A connection to who listens there, which waits up to `seconds`; None if nobody does.

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
        """The number of the socket's file; none is used twice while somebody listens on it."""
        try:
            return os.stat(f"{name}.sock", dir_fd=self.fd).st_ino
        except FileNotFoundError:
            return None

    def leave(self, name: str, seat: int | None) -> None:
        """Remove the socket's file, if it is still the one with this number, and an empty log."""
        if seat is None or self.seat(name) != seat:
            return
        with suppress(FileNotFoundError):
            # The log first: who finds no socket makes a new one of each.
            if not os.stat(f"{name}.log", dir_fd=self.fd).st_size:
                os.unlink(f"{name}.log", dir_fd=self.fd)
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.sock", dir_fd=self.fd)

    def sweep(self) -> None:
        """Remove what killed workers have left: sockets on which nobody listens."""
        for path in self.path.glob("*.sock"):
            if connection := self.connect(path.stem, SWEEP_SECONDS):
                connection.close()
            else:
                self.leave(path.stem, self.seat(path.stem))

    def log_path(self, name: str) -> Path:
        """What a worker has written to its output."""
        return self.path / f"{name}.log"

    def log(self, name: str) -> BinaryIO:
        """The same file, to be written to at its end."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(f"{name}.log", flags, 0o600, dir_fd=self.fd), "ab")

    def _address(self, name: str) -> str:
        # Not the folder's own path: an address holds 107 bytes, and the folder is surely the one
        # that was checked.
        return f"/proc/self/fd/{self.fd}/{name}.sock"


def is_ours(connection: socket.socket) -> bool:
    """Whether a process of this user is at the other end."""
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", found)[1] == os.geteuid()


def _default_path() -> Path:
    """Under the session's own folder where there is one, else with the temporary files."""
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
        raise FedMoEError(f"{path}: no folder for workers' sockets: {error.strerror}") from error
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise FedMoEError(
            f"{path}: belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}; "
            f"expected user {os.geteuid()} and mode 700. Remove it, or set TMPDIR to another folder"
        )
    return fd

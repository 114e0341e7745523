"""The socket, by uvicorn: bounds on connections, and on clients that are slow to ask."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedmoe.errors import FedMoEError
from fedmoe.serving.limits import Limits

LAST_TOKEN = 5
"""Seconds that answers have at the end to come to their next token, and to be told so."""


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's alone.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes any that is free.

    Raises:
        FedMoEError: the address is in use, not allowed, or not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), port), family=family, backlog=64)
    except OSError as error:
        why = f"cannot be used: {error}"
        if error.errno == errno.EADDRINUSE:
            why = "is in use; choose another --port, or 0 for any that is free"
        raise FedMoEError(f"{host}, port {port}: it {why}") from None


def url_of(listener: socket.socket) -> str:
    """Return the address at which OpenAI's clients find the server."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class _Server(uvicorn.Server):
    """Says at a signal that it ends, before it waits for answers that are under way."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self.end = end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.end()
        super().handle_exit(sig, frame)


def server_of(app: ASGIApp, limits: Limits, end: Callable[[], None]) -> uvicorn.Server:
    """Return the server of an application; `run` takes the listening sockets.

    SIGINT and SIGTERM call `end`, end the server, and are then raised again.
    """
    config = uvicorn.Config(
        app,
        http=_punctual(limits.idle_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=round(limits.idle_seconds),
        timeout_graceful_shutdown=LAST_TOKEN,
    )
    return _Server(config, end)


def _punctual(seconds: float) -> type[H11Protocol]:
    """Return the protocol of connections that are closed if a request's head takes long.

    uvicorn 0.49 waits forever for one that has begun.
    """

    class Punctual(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if not answering:
                self._wait()
            elif self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self.waiting is None:
                self.waiting = self.loop.call_later(seconds, self.transport.abort)

    return Punctual

"""A web server for this machine alone: one page, its state as JSON, and Prometheus' metrics.

No part of an address reaches the file system: a run is looked up among those that were found. Only
requests for localhost are answered: otherwise a web page from elsewhere could read runs under a
name that it points at this machine (DNS rebinding).
"""

from __future__ import annotations

import errno
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from fedmoe.errors import FedMoEError
from fedmoe.system.json_text import json_text
from fedmoe.watch import page
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.prometheus import CONTENT_TYPE, render_metrics

ADDRESS = "127.0.0.1"
HOSTS = ("localhost", ADDRESS)
"""With any port: a tunnel may give it another."""
HTML, JSON = "text/html; charset=utf-8", "application/json; charset=utf-8"
Answer = tuple[HTTPStatus, str, str]
"""Status, content type, text."""


class Pages:
    """Answers to addresses, from the folder as it is at that moment."""

    def __init__(self, folder: WatchedFolder) -> None:
        self.folder = folder
        self.headers = {
            "Content-Security-Policy": page.content_security_policy(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    def answer(self, target: str) -> Answer:
        """Return the answer to a GET of `target`, the path and query of a URL."""
        try:
            parts = urlsplit(target)
        except ValueError:  # such as `//[`
            return HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", "This is no address.\n"
        if parts.path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, render_metrics(self.folder.read().runs)
        if parts.path not in ("/", "/state.json"):
            return _not_found("This server has /, /state.json and /metrics.")
        parent = None
        if names := parse_qs(parts.query).get("run"):
            chosen, parent = self.folder.run_named(names[-1]), self.folder.title
            if chosen is None:
                return _not_found("There is no such run.")
        else:
            now = self.folder.read()
            chosen = now.runs[0] if self.folder.is_run else now
        if parts.path == "/":
            return HTTPStatus.OK, HTML, page.render_state(chosen, parent)
        line, stamp = chosen.status_line, page.stamp_of(chosen)
        state = {**chosen.as_json(), "status_line": line, "stamp": stamp}
        return HTTPStatus.OK, JSON, json_text(state)


class Server(ThreadingHTTPServer):
    """Serves the pages of one folder until it is shut down."""

    daemon_threads = True

    def __init__(self, folder: WatchedFolder, port: int) -> None:
        """Listen on this machine's loopback address.

        Raises:
            FedMoEError: the port is in use, or not allowed.
        """
        self.pages = Pages(folder)
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            why = f"cannot be used: {error}"
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                why = "is in use, perhaps by another `fedmoe watch`"
            raise FedMoEError(
                f"--port {port} {why}; choose another one, or 0 for any that is free"
            ) from None

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has gone away; show faults of our own."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; refuses everything else."""

    server_version, sys_version = "fedmoe", ""
    timeout = 10
    """Seconds for a request to arrive, as a thread must not wait forever."""

    def do_GET(self) -> None:
        """Send the page, its state, or the metrics."""
        if not self._for_this_machine():
            self._send((HTTPStatus.FORBIDDEN, "text/plain", f"Use http://{ADDRESS} instead.\n"))
            return
        self._send(self._pages.answer(self.path))

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # a body that is not read would be taken for a request
        answer = HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "Only GET and HEAD are allowed.\n"
        self._send(answer, {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    @property
    def _pages(self) -> Pages:
        assert isinstance(self.server, Server)
        return self.server.pages

    def _for_this_machine(self) -> bool:
        names = self.headers.get_all("Host") or []
        return len(names) == 1 and re.sub(r":\d*$", "", names[0].lower()) in HOSTS

    def _send(self, answer: Answer, more: dict[str, str] | None = None) -> None:
        status, kind, text = answer
        body = text.encode()
        self.send_response(status)
        for name, value in {**self._pages.headers, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a browser that asks every two seconds would fill the terminal."""


def _not_found(text: str) -> Answer:
    return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", f"{text}\n"

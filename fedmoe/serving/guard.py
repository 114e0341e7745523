"""Refusals before a request is read: strangers, other pages' requests, what is too long.

On a loopback address only requests for localhost are answered: otherwise a web page from elsewhere
could use the model under a name that it points at this machine (DNS rebinding). A page may send no
JSON to another origin without asking first, and that question is refused, too.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request as HTTP
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fedmoe.serving.limits import Limits
from fedmoe.serving.request import Refused
from fedmoe.system.json_text import json_text

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Passes on to an application what may reach it, with its whole body."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Sequence[str], key: str) -> None:
        self.app, self.limits, self.key = app, limits, key
        self.hosts = hosts
        """The names by which the server may be called; any where there is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            self._check(scope)
            body = await self._body(Headers(scope=scope), receive)
        except Refused as refused:
            # A body that is not read would be taken for a request.
            await error_response(refused, close=True)(scope, receive, send)
        except ConnectionError:
            return
        else:
            await self.app(scope, _again(body, receive), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = [re.sub(r":\d*$", "", host.lower()) for host in headers.getlist("host")]
        if self.hosts and not (len(hosts) == 1 and hosts[0] in self.hosts):
            said = "this server answers on its own machine alone, as localhost"
            raise Refused(said, status=403, code="foreign_host")
        if self.key and scope["path"] != "/health":
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise Refused(
                    "the API key is wrong, or missing", status=401, code="invalid_api_key"
                )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise Refused("the body must have the Content-Type application/json", status=415)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self.limits.body_bytes
        too_long = Refused(f"the body has over {most:,} bytes", status=413, code="too_large")
        size = headers.get("content-length", "0")
        if size.isdecimal() and int(size[:20]) > most:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_long
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            said = f"the body did not arrive within {self.limits.idle_seconds:g} seconds"
            raise Refused(said, status=408, code="timeout") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with a body that was read, and then waits as before."""
    parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_part() -> Any:
        return parts.pop() if parts else await receive()

    return next_part


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """Return JSON that no browser keeps or takes for a page."""
    safe = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(json_text(value), status, {**safe, **headers}, "application/json")


def error_response(refused: Refused, close: bool = False) -> Response:
    """Return the reason why a request is not answered."""
    headers = {"Connection": "close"} if close else {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    return json_response(refused.body, refused.status, **headers)


async def gone(http: HTTP) -> None:
    """Wait until the client is gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass

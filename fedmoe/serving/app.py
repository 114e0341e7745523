"""The addresses: /v1/models, /v1/chat/completions, /v1/completions and /health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTP
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fedmoe.data.conversations import RowFault, json_fault, loads
from fedmoe.data.templates import template_of
from fedmoe.errors import DataError
from fedmoe.export.generate import Answer
from fedmoe.serving.answer import Wording, calls_in, sse
from fedmoe.serving.engine import Engine, Event
from fedmoe.serving.functions import Calls, calls_of
from fedmoe.serving.guard import Guard, error_response, gone, json_response
from fedmoe.serving.request import Refused, Request, Started, read_request

Log = Callable[[str], None]
PROBED = {"type": "function", "function": {"name": "probe_name", "parameters": {}}}
"""A function with which a template is tried."""
T = TypeVar("T")


class Endpoint:
    """Answers to addresses, by one engine."""

    def __init__(self, engine: Engine, log: Log = lambda line: None) -> None:
        self.engine, self.log = engine, log
        self.created = int(time.time())
        self.form = _form(engine)
        """How calls of functions are read; None if they stay text."""
        self.no_tools = _no_tools(engine)
        """Why requests may have no functions; empty if they may."""

    def app(self, hosts: Sequence[str] = (), key: str = "") -> ASGIApp:
        """Return the application.

        Args:
            hosts: the names by which it may be called; any where there is none.
            key: that clients must name; none where it is empty.
        """
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._text, methods=["POST"]),
        ]
        handlers: Any = {Refused: _refused, HTTPException: _no_such}
        app = Starlette(routes=routes, exception_handlers=handlers)
        return Guard(app, self.engine.limits, hosts, key)

    async def _health(self, http: HTTP) -> Response:
        return json_response({"status": "ok", "requests": self.engine.present})

    async def _models(self, http: HTTP) -> Response:
        found = [self._described(name) for name in self.engine.loaded.levels]
        return json_response({"object": "list", "data": found})

    async def _model(self, http: HTTP) -> Response:
        return json_response(self._described(http.path_params["name"]))

    def _described(self, name: str) -> dict[str, Any]:
        self._check_model(name)
        level = self.engine.loaded.levels[name]
        facts = {"top_k": level.top_k, "frozen": level.frozen, "run": self.engine.loaded.name}
        head = {"id": name, "object": "model", "created": self.created, "owned_by": "fedmoe"}
        return head | {"fedmoe": facts}

    def _check_model(self, name: str) -> None:
        loaded = self.engine.loaded
        if name in loaded.left_out:
            said = f"model {name!r}: {loaded.left_out[name]}"
            raise Refused(said, "model", status=404, code="model_not_found")
        if name not in loaded.levels:
            known = ", ".join(map(repr, loaded.levels))
            said = f"model {name!r:.60} is not one of {known}"
            raise Refused(said, "model", status=404, code="model_not_found")

    async def _chat(self, http: HTTP) -> Response:
        return await self._answer(http, chat=True)

    async def _text(self, http: HTTP) -> Response:
        return await self._answer(http, chat=False)

    async def _answer(self, http: HTTP, chat: bool) -> Response:
        request = read_request(await _json(http), chat, self.engine.limits)
        self._check_model(request.model)
        if request.tools and self.no_tools:
            raise Refused(f"{self.no_tools}; send no tools", "tools", code="unsupported_value")
        if request.tools and not self.engine.loaded.text.describe_tools:
            # As in training; the model may call them nevertheless.
            request = replace(request, without_effect=(*request.without_effect, "tools"))
        begun, events = time.monotonic(), self.engine.events(request)
        form = self.form if request.tools else None
        # It may be refused until it is started; then a stream's status is sent.
        started = await _unless_gone(http, anext(events))
        if started is None:
            return Response()
        assert isinstance(started, Started)
        wording = Wording(request, started)
        if request.stream:
            logged = self._logged(events, request, started, begun)
            return _Stream(logged, wording, form, self.engine.limits.seconds)
        answer = await _unless_gone(http, _whole(self._logged(events, request, started, begun)))
        if answer is None:
            return Response()
        return json_response(wording.whole(answer, calls_in(answer, form)))

    async def _logged(
        self, events: AsyncIterator[Event], request: Request, started: Started, begun: float
    ) -> AsyncIterator[Event]:
        """Yield the events, and say in the end what was done; nothing that was said is in it."""
        said = "left by its client"
        try:
            async with aclosing(events) as those:  # pyright: ignore[reportArgumentType]
                async for event in those:
                    if isinstance(event, Answer):
                        said = f"{event.prompt_tokens} + {event.new_tokens} tokens"
                    yield event
        except Refused as refused:
            said = refused.message
            raise
        finally:
            seconds = time.monotonic() - begun
            self.log(f"{request.model}, k = {started.top_k}: {said}, {seconds:.1f} s")


def _no_tools(engine: Engine) -> str:
    """Return why a request may describe no functions; empty if the template words them."""
    try:
        engine.generator.prompt([{"role": "user", "content": "?"}], [PROBED])
    except DataError:
        return f"{engine.loaded.name} was trained without function calls: no prompt words them"
    return ""


def _form(engine: Engine) -> Calls | None:
    loaded = engine.loaded
    if loaded.model.form.name != "causal":
        return None

    def decode(ids: Sequence[int]) -> str:
        return loaded.tokenizer.decode([*ids], skip_special_tokens=True)

    return calls_of(template_of(loaded.tokenizer, loaded.text), decode)


async def _json(http: HTTP) -> Any:
    try:
        return loads((await http.body()).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8 text: {error.reason}") from error
    except RowFault as fault:
        raise Refused(f"the body: {fault}") from fault
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {json_fault(error)}") from error


async def _whole(events: AsyncIterator[Event]) -> Answer:
    async with aclosing(events) as those:  # pyright: ignore[reportArgumentType]
        async for event in those:
            if isinstance(event, Answer):
                return event
    raise AssertionError("an answer ends with the whole of it")


async def _unless_gone(http: HTTP, work: Awaitable[T]) -> T | None:
    """Return what becomes of work, which is ended once the client is gone: then None."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(http))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, left):
            each.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


class _Stream(StreamingResponse):
    """An answer as server-sent events."""

    def __init__(
        self, events: AsyncIterator[Event], wording: Wording, form: Calls | None, seconds: float
    ) -> None:
        self.parts, self.seconds = _parts(events, wording, form), seconds
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        super().__init__(self.parts, 200, headers, "text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # The answer comes in time; a client that does not read it may take as long again.
            async with asyncio.timeout(2 * self.seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return
        finally:
            await self.parts.aclose()  # a client that is gone waits for no answer


async def _parts(
    events: AsyncIterator[Event], wording: Wording, form: Calls | None
) -> AsyncGenerator[str, None]:
    held = ""
    try:
        async with aclosing(events) as those:  # pyright: ignore[reportArgumentType]
            for part in wording.opening():
                yield part
            async for event in those:
                if isinstance(event, str):
                    held += event
                    if form is None or not form.may_begin(held):
                        yield wording.piece(held)
                        held, form = "", None
                elif isinstance(event, Answer):
                    calls = calls_in(event, form)
                    if held and not calls:
                        yield wording.piece(held)
                    for part in wording.closing(event, calls):
                        yield part
    except Refused as refused:
        yield sse(refused.body)


async def _refused(http: HTTP, refused: Refused) -> Response:
    return error_response(refused)


async def _no_such(http: HTTP, error: HTTPException) -> Response:
    said = (
        f"{http.method} {http.url.path!r:.80}: this server has GET /health, GET /v1/models, "
        "POST /v1/chat/completions and POST /v1/completions"
    )
    return error_response(Refused(said, status=error.status_code))

"""Clients of the endpoint that leave, that are too many, too slow, or meet a fault of ours."""

import asyncio
import json
import signal
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
from endpoint import ASK, CHAT, JSON, MOST, asked, endpoint, tiny_loaded, web

from fedmoe.errors import FedMoEError
from fedmoe.export import generate
from fedmoe.serving.guard import LOOPBACK
from fedmoe.serving.limits import Limits
from fedmoe.serving.server import listening, server_of, url_of

FINE = {"model": "high", "messages": ASK}


@pytest.fixture(scope="module")
def loaded(tiny_model, random_adapter):
    return tiny_loaded(tiny_model, random_adapter)


@pytest.fixture
def gate(monkeypatch):
    """A gate before every token but the first, until the answer is ended; `begun` counts."""
    opened, decode_each = threading.Event(), generate.decode_each
    opened.begun = 0

    def slowly(model, prompt, most, pad, end, each, sampling):
        def one(token):
            go_on = each(token)
            while go_on and not opened.wait(0.01) and not opened.asked_to_end():
                pass
            return go_on

        opened.begun += 1
        decode_each(model, prompt, most, pad, end, one, sampling)

    answer = generate.Generator.answer

    def watched(self, *args, ended, **more):
        opened.asked_to_end = ended
        return answer(self, *args, ended=ended, **more)

    monkeypatch.setattr(generate, "decode_each", slowly)
    monkeypatch.setattr(generate.Generator, "answer", watched)
    yield opened
    opened.set()


async def call(app, body, leave):
    """Send a request by hand, and leave when `leave` is set; return what came."""
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode()}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]}
    scope |= {"asgi": {"spec_version": "2.3", "version": "3.0"}, "server": ("localhost", 80)}
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent = []

    async def receive():
        if parts:
            return parts.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def until(done, seconds=10):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer_and_the_next_is_served(loaded, gate, stream):
    lines = []

    async def run():
        with endpoint(loaded) as made:
            made.log = lines.append
            app, leave = made.app(LOOPBACK), asyncio.Event()
            first = asyncio.create_task(call(app, FINE | {"stream": stream}, leave))
            await until(lambda: gate.begun == 1)
            waiting = asyncio.create_task(call(app, FINE, leave))
            await until(lambda: made.engine.present == 2)
            leave.set()
            await asyncio.gather(first, waiting)
            await until(lambda: made.engine.present == 0)
            gate.set()
            async with web(made) as http:
                assert (await http.post(CHAT, json=FINE)).status_code == 200
            assert gate.begun == 2  # the one that waited was never begun

    asyncio.run(run())
    assert "left by its client" in lines[0]


def test_more_requests_than_may_wait_are_refused_at_once(loaded, gate):
    async def ask(_, http):
        posts = [asyncio.create_task(http.post(CHAT, json=FINE)) for _ in range(5)]
        await until(lambda: sum(post.done() for post in posts) == 3)
        for post in posts:
            if post.done():
                found = post.result()
                assert found.status_code == 429
                assert int(found.headers["retry-after"]) >= 1
                assert found.json()["error"]["code"] == "rate_limit_exceeded"
        gate.set()
        statuses = [(await post).status_code for post in posts]
        assert sorted(statuses) == [200, 200, 429, 429, 429]

    asked(loaded, ask, queue=1)


def test_an_answer_that_takes_too_long_is_ended_and_that_is_said(loaded, gate):
    async def run():
        with endpoint(loaded, seconds=0.3) as made:
            async with web(made) as http:
                first = asyncio.create_task(http.post(CHAT, json=FINE))
                await until(lambda: gate.begun == 1)
                made.engine.limits = replace(made.engine.limits, seconds=0.1)
                waited = await http.post(CHAT, json=FINE | {"stream": True})
                for found, said in ((await first, "not finished"), (waited, "did not begin")):
                    assert found.status_code == 503
                    assert said in found.json()["error"]["message"]
                    assert "retry-after" in found.headers
                stream = await http.post(CHAT, json=FINE | {"stream": True})
                last = stream.text.strip().rpartition("data: ")[2]
                assert json.loads(last)["error"]["code"] == "timeout"
                gate.set()
                made.engine.limits = replace(made.engine.limits, seconds=60)
                assert (await http.post(CHAT, json=FINE)).status_code == 200

    asyncio.run(run())


def test_a_fault_of_ours_is_an_error_in_the_format_and_the_server_goes_on(
    loaded, monkeypatch, capfd
):
    async def ask(_, http):
        with monkeypatch.context() as patch:
            patch.setattr(generate, "decode_each", lambda *_: 1 / 0)
            found = await http.post(CHAT, json=FINE)
        assert found.status_code == 500
        assert found.json()["error"]["type"] == "server_error"
        assert "ZeroDivision" not in found.text
        assert (await http.post(CHAT, json=FINE)).status_code == 200

    asked(loaded, ask)
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.fixture
def port(loaded):
    """The port of a server of the endpoint whose clients may take half a second."""
    limits = Limits(new_tokens=MOST, idle_seconds=0.5, body_bytes=1000)
    with endpoint(loaded) as made, listening("127.0.0.1", 0) as listener:
        made.engine.limits = limits
        server = server_of(made.app(LOOPBACK), limits, made.engine.end)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield int(url_of(listener).rsplit(":")[-1].removesuffix("/v1"))
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_a_server_that_is_ended_says_so_to_whom_it_answers_and_to_whom_waits(loaded, gate):
    limits, texts = Limits(new_tokens=MOST), {}
    with endpoint(loaded) as made, listening("127.0.0.1", 0) as listener:
        server = server_of(made.app(LOOPBACK), limits, made.engine.end)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()

        def ask(name, stream):
            url = url_of(listener).removesuffix("/v1") + CHAT
            texts[name] = httpx.post(url, json=FINE | {"stream": stream}, timeout=20)

        asking = [
            threading.Thread(target=ask, args=x) for x in (("first", True), ("second", False))
        ]
        for number, one in enumerate(asking, 1):
            one.start()
            asyncio.run(until(lambda number=number: made.engine.present == number and gate.begun))
        begun = time.monotonic()
        server.handle_exit(signal.SIGINT, None)
        for one in (*asking, serving):
            one.join(10)
            assert not one.is_alive()
        assert time.monotonic() - begun < 3
    last = json.loads(texts["first"].text.strip().rpartition("data: ")[2])
    assert "the server is ending; the answer was not finished" in last["error"]["message"]
    assert texts["second"].status_code == 503
    assert "did not begin" in texts["second"].json()["error"]["message"]


HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_clients_that_are_slow_to_ask_are_sent_away(port):
    heads = {"": b"", HEAD[:30]: b"", f"{HEAD}Content-Length: 99\r\n\r\n{{": b" 408 "}
    heads[f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n"] = b" 408 "
    heads["GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"] = b" 200 "
    opened = [(socket.create_connection(("127.0.0.1", port)), head) for head in heads]
    for one, head in opened:
        one.settimeout(10)
        one.sendall(head.encode())
    for one, head in opened:
        with one, one.makefile("rb") as file:
            try:
                answer = file.read()  # until it is closed
            except ConnectionResetError:
                answer = b""
            assert heads[head] in answer[:20] if heads[head] else answer == b"", head
    found = httpx.post(f"http://127.0.0.1:{port}{CHAT}", json=FINE)
    assert found.status_code == 200
    body = b"x" * 1001
    assert (
        httpx.post(f"http://127.0.0.1:{port}{CHAT}", content=body, headers=JSON).status_code == 413
    )


def test_an_address_that_cannot_be_listened_at_is_an_error():
    with listening("127.0.0.1", 0) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(FedMoEError, match="is in use; choose another --port"):
            listening("127.0.0.1", number)
    for host in ("192.0.2.1", "no such host", "::ffff"):
        with pytest.raises(FedMoEError, match="cannot be used"):
            listening(host, 0)

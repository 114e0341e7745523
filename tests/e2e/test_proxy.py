"""What a stranger can do to the SuperLink through the nginx of a deployment: next to nothing.

A real nginx (`apt-get install nginx`, or unpacked anywhere on the PATH) runs the generated
configuration; behind it is an upstream that notes what arrives.
"""

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from ports import free_ports

from fedmoe.cli.main import main

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
ROOT = Path(__file__).parents[2]
OBJECT, CALL = "/v1/fleet/push-object", "/v1/fleet/register-node"
MOST_CONNECTIONS = 32
"""From one address, in a fleet of three."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NGINX, reason="NO NGINX HERE: THE PROXY'S LIMITS ARE NOT TESTED"),
]


class Upstream(BaseHTTPRequestHandler):
    """A SuperLink that notes the path and size of every request."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, int]]] = []

    def do_POST(self):
        self.seen.append((self.path, 0))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen[-1] = self.path, len(body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """A function that connects to a running proxy; its upstream notes what arrives."""
    home = tmp_path_factory.mktemp("proxy")
    public, superlink = free_ports(2)
    fleet, config = home / "fleet", str(ROOT / "configs/deploy/rehearsal.yaml")
    words = (f"--server=fed.example.org:{public}", "--config", config)
    clients = ("--clients", "a=high,b=low,c=lowest")
    assert main(["deploy", "init", str(fleet), *words, *clients]) == 0
    conf = fleet / "server/nginx.conf"
    conf.write_text(
        conf.read_text()
        .replace("127.0.0.1:8000", f"127.0.0.1:{superlink}")
        .replace("/tmp/", f"{home}/")
    )
    upstream = ThreadingHTTPServer(("127.0.0.1", superlink), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet / "server/server.crt", fleet / "server/server.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    trusted = ssl.create_default_context(cafile=str(fleet / "ca/ca.crt"))

    def connect():
        link = http.client.HTTPSConnection("localhost", public, context=trusted, timeout=30)
        link.connect()
        return link

    assert NGINX
    who = "" if os.geteuid() else "user root;"  # root would work as a user who may not read here
    said = (home / "log").open("wb")
    nginx = subprocess.Popen([NGINX, "-c", conf, "-g", f"daemon off; {who}"], stderr=said)
    try:
        for _ in range(100):
            try:
                connect().close()
                break
            except OSError:
                assert nginx.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
        yield connect
    finally:
        nginx.terminate()
        nginx.wait(20)
        upstream.shutdown()
        upstream.server_close()
        said.close()


@pytest.fixture(autouse=True)
def nothing_seen():
    Upstream.seen.clear()


def post(connect, path, size):
    """The status of a request with a body of that many bytes; a proxy may hang up before all."""
    with closing(connect()) as link:
        link.putrequest("POST", path)
        link.putheader("Content-Length", str(size))
        link.endheaders()
        try:
            for _ in range(size // 2**16):
                link.send(bytes(2**16))
            link.send(bytes(size % 2**16))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            pass  # it has said why before
        return link.getresponse().status


def test_300_megabytes_from_a_stranger_do_not_reach_the_superlink(proxy):
    assert post(proxy, CALL, 300 * 10**6) == 413
    assert post(proxy, "/v1/fleet/push-messages", 2**20 + 1) == 413
    assert post(proxy, OBJECT, 300 * 10**6) == 413
    assert Upstream.seen == []
    with closing(proxy()) as link:  # nor in pieces, without saying how many
        link.putrequest("POST", CALL)
        link.putheader("Transfer-Encoding", "chunked")
        link.endheaders()
        try:
            for _ in range(64):
                link.send(b"10000\r\n" + bytes(2**16) + b"\r\n")
        except OSError:
            pass
        assert link.getresponse().status == 413
    assert Upstream.seen == []


def test_what_flower_sends_arrives(proxy):
    whole = 5 * 2**20 + 2000  # an object and what is around it
    assert post(proxy, OBJECT, whole) == 200
    assert post(proxy, "/v1/fleet/push-messages", 2**20) == 200
    assert Upstream.seen == [(OBJECT, whole), ("/v1/fleet/push-messages", 2**20)]
    assert post(proxy, "/v1/control/list-nodes", 10) == 404
    assert post(proxy, "/docs", 10) == 404
    assert len(Upstream.seen) == 2


def test_a_request_that_does_not_end_stays_with_the_proxy(proxy):
    with closing(proxy()) as link:
        link.putrequest("POST", OBJECT)
        link.putheader("Content-Length", str(4 * 2**20))
        link.endheaders(bytes(3 * 2**20))
        time.sleep(1)
        assert Upstream.seen == []
        link.send(bytes(2**20))
        assert link.getresponse().status == 200
    assert Upstream.seen == [(OBJECT, 4 * 2**20)]


@contextmanager
def half_sent(connect, number):
    """So many requests of which the last byte is missing."""
    with ExitStack() as stack:
        for _ in range(number):
            link = stack.enter_context(closing(connect()))
            link.putrequest("POST", OBJECT)
            link.putheader("Content-Length", "10")
            link.endheaders(bytes(9))
        yield


def test_one_address_has_so_many_requests_under_way_and_no_more(proxy):
    with half_sent(proxy, MOST_CONNECTIONS - 1):
        assert post(proxy, CALL, 10) == 200
    with half_sent(proxy, MOST_CONNECTIONS):
        assert post(proxy, CALL, 10) == 503, "which Flower tries again"
    wait = iter(range(50))  # until nginx has noticed that they have gone
    while post(proxy, CALL, 10) != 200:
        next(wait)
        time.sleep(0.1)


def test_requests_come_no_faster_than_their_rate(proxy):
    per_second, number = 150, 450
    started = time.monotonic()

    def ask(times):
        with closing(proxy()) as link:
            for _ in range(times):
                link.request("POST", CALL, body=b"x")
                assert link.getresponse().read() == b"ok"

    askers = [threading.Thread(target=ask, args=(number // 9,)) for _ in range(9)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    assert len(Upstream.seen) == number, "none was lost"
    assert time.monotonic() - started > 0.9 * number / per_second


def test_half_open_connections_are_cut_off(proxy):
    """A header that never ends."""
    with closing(proxy()) as link:
        assert isinstance(link.sock, socket.socket)
        link.sock.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n")
        link.sock.settimeout(20)
        assert link.sock.recv(100) == b""

"""The local web server: what it answers, to whom, and that no address reaches the file system."""

import base64
import hashlib
import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from watched import answered, end, failed, header, scored, whole_round, write

from fedmoe.cli.main import main
from fedmoe.report.figures import hex_colour, shades
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.server import Server


@contextmanager
def serving(folder):
    """A server of a folder on a free port."""
    with Server(WatchedFolder(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, target, method="GET", **headers):
    """Status, headers and text of an answer; the Host header is this machine's unless given."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    try:
        connection.putrequest(method, target, skip_host=True)
        for name, value in ({"Host": "localhost"} | headers).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def runs(tmp_path):
    lines = [header(2), *scored(0, "test", 0.0), *whole_round(1)]
    write(tmp_path / "x/a", *lines, failed(2, 0, "<script>alert(1)</script>"), now=time.time())
    write(tmp_path / "x/b", *lines, *whole_round(2), end(), now=time.time())
    (tmp_path / "secret.txt").write_text("a secret")
    return tmp_path / "x"


def test_a_folder_of_runs_has_a_line_and_a_page_each(runs):
    with serving(runs) as server:
        status, headers, text = ask(server, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert 'href="/?run=a"' in text
        assert "1 of 2 runs finished" in text
        assert '<a href="/?run=b">b</a>' in text
        assert text.count("/?run=a") == 1, "each run is named once"
        assert "low" in ask(server, "/?run=b")[2]
        state = json.loads(ask(server, "/state.json?run=a")[2])
        assert (state["round"], state["phase"]) == (2, "running")
        assert json.loads(ask(server, "/state.json")[2])["num_finished"] == 1
        status, headers, text = ask(server, "/metrics")
        assert (status, headers["Content-Type"][:25]) == (200, "text/plain; version=0.0.4")
        assert 'fedmoe_rounds_finished_total{run="b"} 2\n' in text


def test_the_page_is_whole_without_a_script_and_escapes_what_comes_from_the_run(runs):
    with serving(runs / "a") as server:
        _, headers, text = ask(server, "/")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "60.0%" in text
    assert "<svg" in text
    assert not re.search(r"""(src|href)=["']?(?!/)""", text), "nothing from elsewhere"
    assert "style=" not in text, "its own policy forbids it"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_pages_policy_names_its_own_style_and_script(runs):
    """Else a browser would show the page bare, and never renew it."""
    with serving(runs) as server:
        _, headers, text = ask(server, "/")
    for tag in ("style", "script"):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in headers["Content-Security-Policy"]


def test_a_tier_has_the_colour_of_the_reports_plots(runs):
    with serving(runs / "a") as server:
        text = ask(server, "/")[2]
    report = [hex_colour(colour) for colour in shades(["low", "high"]).values()]
    assert re.findall(r'<g class="tier" color="([^"]*)"', text) == report


def test_a_head_has_no_body_and_other_methods_are_refused(runs):
    with serving(runs) as server:
        status, headers, text = ask(server, "/", "HEAD")
        assert (status, text) == (200, "")
        assert int(headers["Content-Length"]) > 1000
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            status, headers, _ = ask(server, "/state.json", method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD"), method
        assert ask(server, "/", "BREW")[0] == 501


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "//etc/passwd",
        "/ledger.jsonl",
        "/a/ledger.jsonl",
        "/?run=../secret.txt",
        "/state.json?run=/etc",
        "/?run=a%00",
        "/?run=..",
        "/?run=.",
        "/state.json?run=a/../b",
        "/page",
        "/?run=" + "a" * 3000,
        "/favicon.ico",
    ],
)
def test_no_address_reaches_the_file_system(runs, target):
    with serving(runs) as server:
        status, _, text = ask(server, target)
        assert (status, "secret" in text or "root" in text) == (404, False)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "evil.example@localhost",
        "0.0.0.0",
        "",
        None,
    ],
)
def test_a_name_that_is_not_this_machine_is_refused(runs, host):
    with serving(runs) as server:
        for target in ("/", "/state.json", "/metrics"):
            status, _, text = ask(server, target, Host=host)
            assert (status, "round" in text) == (403, False), (host, target)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8765"])
def test_this_machine_is_answered_under_its_own_names_and_any_port(runs, host):
    with serving(runs) as server:
        assert ask(server, "/metrics", Host=host)[0] == 200


def test_a_request_that_is_no_http_does_not_end_the_server(runs):
    with serving(runs) as server:
        for junk in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection(server.server_address[:2], timeout=10) as link:
                link.sendall(junk)
                assert b"secret" not in link.recv(4096)
        assert ask(server, "/")[0] == 200


def test_it_listens_on_this_machine_alone(runs):
    with serving(runs) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_state_changes_its_stamp_with_the_ledger_and_only_then(runs):
    ledger = runs / "a/ledger.jsonl"
    before = ledger.stat().st_mtime_ns
    with serving(runs / "a") as server:
        first, again = (json.loads(ask(server, "/state.json")[2]) for _ in range(2))
        assert first["stamp"] == again["stamp"]
        with ledger.open("a") as file:
            file.write(json.dumps(answered(2, 2)) + "\n")
        os.utime(ledger, ns=(before, before))  # a coarse clock: both lines of one moment
        grown = json.loads(ask(server, "/state.json")[2])
        assert grown["stamp"] != first["stamp"]
        assert [c["state"] for c in grown["clients"]] == ["failed", "awaited", "ok", "awaited"]
        stamp = re.search('data-stamp="([^"]*)"', ask(server, "/")[2])
        assert stamp
        assert stamp[1] == grown["stamp"], "or the script would fetch the page for ever"


def test_a_ledger_that_breaks_while_it_is_watched_is_said_on_the_page(runs):
    (runs / "a").rename(runs / "<b>a")  # its name is part of the message
    with serving(runs / "<b>a") as server:
        (runs / "<b>a/ledger.jsonl").write_text("no json\n")
        status, _, text = ask(server, "/")
        assert (status, "line 1 is damaged" in text) == (200, True)
        assert "<b>" not in text
        assert "line 1 is damaged" in ask(server, "/state.json")[2]


def test_a_port_that_is_taken_is_an_error_one_can_fix(runs, capsys):
    with serving(runs) as server:
        port = server.server_address[1]
        assert main(["watch", str(runs), "--port", str(port)]) == 2
    assert f"--port {port} is in use" in capsys.readouterr().err
    assert main(["watch", str(runs), "--port", "70000"]) == 2


def watch(runs, said):
    """The command in a process of its own, whose output and errors go to a file."""
    sys.stdout = sys.stderr = said.open("w", buffering=1)
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(["watch", str(runs), "--port", "0"]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_when_it_is_told_to(runs, number, tmp_path):
    said = tmp_path / "said"
    said.touch()
    process = multiprocessing.get_context("fork").Process(target=watch, args=(runs, said))
    process.start()
    end = time.monotonic() + 60
    while "watching" not in said.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    first, *rest = said.read_text().splitlines()
    assert (process.exitcode, rest) == (0, ["no longer watching"]), first

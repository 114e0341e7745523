"""The live page in a real browser: it shows a run, and changes while the run goes on."""

import re
import shutil
import subprocess
import threading
import time
from html import unescape

import pytest
from watched import answered, ended_round, header, scored, whole_round, write

from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.server import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,  # a browser on a busy machine keeps no time
    pytest.mark.skipif(BROWSER is None, reason=f"no browser here; tried {NAMES}"),
]


@pytest.fixture
def folder(tmp_path):
    lines = [header(3), *scored(0, "test", 0.0), *whole_round(1), answered(2, 0)]
    return write(tmp_path / "run", *lines, now=time.time())


def visit(folder, profile, *options, milliseconds=9000, before=None):
    """The page's DOM after some seconds of its own time; `before(target)` is told each request."""
    with Server(WatchedFolder(folder), 0) as server:
        asked, answer = [], server.pages.answer

        def told(target):
            asked.append(target)
            if before:
                before(target, len(asked))
            return answer(target)

        server.pages.answer = told
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            done = subprocess.run(
                [
                    str(BROWSER),
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    f"--user-data-dir={profile}",
                    f"--virtual-time-budget={milliseconds}",
                    *options,
                    "--dump-dom",
                    server.url,
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        finally:
            server.shutdown()
            thread.join()
    return done.stdout, asked


def words(dom):
    """The text that is to be read on a page."""
    body = re.sub(r"<(script|style).*?</\1>", "", dom, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_shows_tiers_scores_and_clients_and_follows_the_ledger(folder, tmp_path):
    later = [answered(2, c) for c in (1, 2, 3)] + [ended_round(2), *scored(2, "validation", 0.831)]

    def grow(target, number):
        if target == "/state.json" and number == 3:  # the page, a first look, and now
            lines = [header(3), *scored(0, "test", 0.0), *whole_round(1), answered(2, 0), *later]
            write(folder, *lines, now=time.time())

    dom, asked = visit(folder, tmp_path / "profile", before=grow)
    text = words(dom)
    assert asked[:4] == ["/", "/state.json", "/state.json", "/"], "fetched again when it changed"
    assert asked.count("/") == 2, "and only then"
    for said in ("low", "high", "83.1%", "93.1%", "Clients of round 3", "not heard yet"):
        assert said in text, said
    assert "no longer up to date" not in text
    assert "Clients of round 2" not in text
    assert dom.count("<polyline") == 2
    assert "2/3 small" in dom[: dom.index("</title>")]


def test_a_page_whose_server_is_gone_says_so(folder, tmp_path):
    def fail(target, _):
        if target == "/state.json":
            raise ConnectionAbortedError

    dom, _ = visit(folder, tmp_path / "profile", before=fail)
    assert "no longer up to date" in words(dom)

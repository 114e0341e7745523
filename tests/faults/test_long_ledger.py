"""A ledger of many megabytes, which must not hold up the pages of other runs."""

import json

import pytest
from watched import answered, end, header, scored, whole_round, write

from fedmoe.errors import FedMoEError
from fedmoe.report import ledger as ledgers
from fedmoe.report.ledger import GrowingLedger, read_ledger
from fedmoe.watch import folder as folders
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.server import Pages
from fedmoe.watch.state import RunState, Unreadable

MOST = 100_000
SHORT = [header(2), *scored(0, "test", 0.0), *whole_round(1)]


@pytest.fixture
def parsed(monkeypatch):
    """Bytes that were parsed: a list with one number a line."""
    found, parse = [], ledgers._record

    def counted(path, number, line):
        found.append(len(line) + 1)
        return parse(path, number, line)

    monkeypatch.setattr(ledgers, "_record", counted)
    return found


@pytest.fixture
def runs(tmp_path):
    """A run with two megabytes of lines, and a short one."""
    lines = [answered(2, client % 4) for client in range(8000)]
    write(tmp_path / "runs/long", *SHORT, *lines)
    write(tmp_path / "runs/short", *SHORT, end())
    return tmp_path / "runs"


def test_each_look_reads_a_part_and_every_line_is_parsed_once(runs, parsed):
    size = (runs / "long/ledger.jsonl").stat().st_size
    assert size > 15 * MOST
    other = (runs / "short/ledger.jsonl").stat().st_size
    watched, looks = WatchedFolder(runs, most_bytes=MOST), 0
    while True:
        before = sum(parsed)
        long, short = watched.read().runs
        looks += 1
        assert isinstance(short, RunState), "which is shown from the first look on"
        assert sum(parsed) - before <= MOST + 500 + (other if looks == 1 else 0)
        if isinstance(long, RunState):
            break
        assert "is long: " in long.error
    assert sum(parsed) == size + other
    assert looks == pytest.approx(size / MOST, abs=2)
    with (runs / "long/ledger.jsonl").open("a") as file:
        file.write(json.dumps(end()) + "\n")
    del parsed[:]
    assert watched.read().num_finished == 2
    assert len(parsed) == 1, "the new line alone"


def test_a_page_of_a_run_does_not_wait_for_another_run(runs, parsed, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.01)
    watched = WatchedFolder(runs)
    pages = Pages(watched)
    known = folders.Known(GrowingLedger(runs / "long/ledger.jsonl"))
    watched._known[runs / "long"] = known
    with known.lock:  # as a request holds it that reads this run
        status, _, page = pages.answer("/?run=short")
        assert (status, len(parsed) < 50) == (200, True), "and the long one is not looked at"
        assert "finished" in page
        status, _, page = pages.answer("/")
        assert (status, "short" in page) == (200, True)
        assert isinstance(watched.run_named("long"), Unreadable)
    assert isinstance(watched.run_named("long"), RunState)


def test_lines_that_were_cut_off_and_written_anew_are_read_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in SHORT)
    path.write_text(text)
    growing = GrowingLedger(path)
    for more in ("", '{"kind": "tor', '{"kind": "round"}\n{"kind'):
        path.write_text(text + more)
        assert growing.read()
        assert growing.records == read_ledger(path)
    for other in (text.replace('"seconds": 2.0', '"seconds": 3.0'), "", text[:-1], text * 2):
        path.write_text(other)
        while not growing.read(10):
            pass
        assert growing.records == read_ledger(path)
    path.write_text(text + "no json\n")
    for _ in range(2):
        with pytest.raises(FedMoEError, match=f"line {len(SHORT) + 1} is damaged"):
            growing.read()

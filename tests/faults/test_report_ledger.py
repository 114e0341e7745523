"""Ledgers and files that a crash, a full disk or a diverged loss hit half-way."""

import errno
import json
import os
import stat

import pytest

from fedmoe.errors import FedMoEError
from fedmoe.report import Ledger, read_ledger
from fedmoe.system.files import write_bytes, write_json, write_text


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append({"kind": "run", "name": "städte", "seed": 1})
        ledger.append({"kind": "round", "round": 1, "seconds": 2.5})
    return path


def test_what_was_appended_is_read_back(path):
    assert read_ledger(path) == [
        {"kind": "run", "name": "städte", "seed": 1},
        {"kind": "round", "round": 1, "seconds": 2.5},
    ]


def test_a_record_can_be_read_as_soon_as_it_is_appended(path):
    with Ledger(path) as ledger:
        ledger.append({"kind": "evaluation", "round": 1})
        assert len(read_ledger(path)) == 3


@pytest.mark.parametrize(("kind", "synced"), [("client", 0), ("round", 1), ("end", 1)])
def test_rounds_and_the_end_reach_the_disk(path, kind, synced, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    with Ledger(path) as ledger:
        ledger.append({"kind": kind})
    assert len(calls) == synced


def test_at_whatever_byte_a_run_is_cut_the_whole_lines_are_read(path):
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert len(read_ledger(path)) == content[:size].count(b"\n")


def test_a_resumed_run_does_not_write_behind_a_torn_line(path):
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with Ledger(path) as ledger:
        ledger.append({"kind": "round", "round": 1})
    assert [r["kind"] for r in read_ledger(path)] == ["run", "round"]
    assert read_ledger(path)[1] == {"kind": "round", "round": 1}


@pytest.mark.parametrize("damage", [b'{"kind": "rou', b"\x00\x00", b"\xff\xfe", b"[]", b"{}", b"3"])
def test_damage_before_the_last_line_is_named_with_its_number(path, damage):
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[1], b""]))
    with pytest.raises(FedMoEError, match="line 2 "):
        read_ledger(path)


def test_numbers_that_are_not_finite_become_null(path):
    with Ledger(path) as ledger:
        ledger.append({"kind": "client", "loss": float("nan"), "by": {"a": [float("inf"), 1.0]}})
    assert read_ledger(path)[-1] == {"kind": "client", "loss": None, "by": {"a": [None, 1.0]}}


def test_a_value_that_is_no_json_leaves_the_ledger_whole(path):
    with Ledger(path) as ledger:
        with pytest.raises(TypeError):
            ledger.append({"kind": "client", "loss": object()})
        ledger.append({"kind": "client", "loss": 1.0})
    assert len(read_ledger(path)) == 3


def test_a_kind_that_no_reader_knows_is_refused(path):
    with Ledger(path) as ledger, pytest.raises(AssertionError):
        ledger.append({"kind": "cleint"})


def test_a_crash_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_text(path, "old")

    def full_disk(_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_the_content_is_on_the_disk_before_it_takes_the_files_name(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_bytes(tmp_path / "x", b"1")
    assert calls == ["fsync", "replace", "fsync"]


def test_others_may_read_what_they_may_read_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "x", {"loss": float("nan")})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "x")}
    assert len(modes) == 1
    assert json.loads((tmp_path / "x").read_text()) == {"loss": None}

"""Frames are bounded before memory is taken for them; a folder that others can reach is refused."""

import os
import socket
import sys
import tempfile
from types import SimpleNamespace

import pytest

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

from clients.worker_frames import (
    HEAD,
    MAGIC,
    MOST_BUFFER_BYTES,
    FrameError,
    Gone,
    Order,
    header_of,
    read_header,
    receive,
    send,
)
from clients.worker_home import Home
from fedmoe.errors import FedMoEError

ORDER = Order("rounds: 1", "data.path=é", "{}", None, [3], "/state", 12.5, 1)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        theirs.settimeout(60)
        yield ours, theirs


def test_what_is_sent_arrives(ends):
    ours, theirs = ends
    send(ours, header_of(ORDER), b"abc")
    header, buffer = receive(theirs)
    assert read_header(header, Order) == ORDER
    assert bytes(buffer) == b"abc"


def test_a_frame_without_a_buffer_ends_with_its_header():
    """Its receiver may answer and close at once; another word to it would look like its death."""
    sent = []
    send(SimpleNamespace(sendall=sent.append), header_of(ORDER))
    assert len(sent) == 1


def test_an_oversized_frame_is_refused_before_a_byte_of_it_is_read(ends):
    ours, theirs = ends
    ours.sendall(HEAD.pack(MAGIC, 2, MOST_BUFFER_BYTES + 1))
    with pytest.raises(FrameError, match=r"a buffer of 17,179,869,185 bytes; at most"):
        receive(theirs)


def test_memory_is_taken_only_for_what_arrives(ends):
    ours, theirs = ends
    ours.sendall(HEAD.pack(MAGIC, 2, MOST_BUFFER_BYTES) + b"{}" + bytes(10))
    ours.close()
    with pytest.raises(Gone):
        receive(theirs)


@pytest.mark.parametrize("length", [0, 5, HEAD.size, HEAD.size + 1])
def test_a_frame_cut_short_is_the_end_of_the_other_side(ends, length):
    ours, theirs = ends
    ours.sendall((HEAD.pack(MAGIC, 2, 0) + b"{}")[:length])
    ours.close()
    with pytest.raises(Gone):
        receive(theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"own": "3"},
        {"checksum": 1.5},
        {"state": None},
        {"fewer": None},
        {"deadline_seconds": "soon"},
    ],
)
def test_a_field_of_a_wrong_type_is_refused(change):
    with pytest.raises(FrameError, match=next(iter(change))):
        read_header(header_of(ORDER) | change, Order)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A machine without folders of sessions, whose temporary folder this is."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_its_owners_alone(temporary):
    with Home() as home:
        assert home.path == temporary / f"fedmoe-{os.geteuid()}"
        assert home.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_open_to_others_is_refused(temporary):
    (temporary / f"fedmoe-{os.geteuid()}").mkdir()
    (temporary / f"fedmoe-{os.geteuid()}").chmod(0o750)
    with pytest.raises(FedMoEError, match="with mode 750; expected"):
        Home()


def test_a_folder_of_someone_else_is_refused(temporary, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(FedMoEError, match=f"belongs to user {me} .* expected user {me + 1}"):
        Home()


def test_a_link_in_its_place_is_refused(temporary):
    (temporary / "elsewhere").mkdir(mode=0o700)
    (temporary / f"fedmoe-{os.geteuid()}").symlink_to(temporary / "elsewhere")
    with pytest.raises(FedMoEError, match="no folder for workers"):
        Home()


def test_a_file_in_its_place_is_refused(temporary):
    (temporary / f"fedmoe-{os.geteuid()}").touch()
    with pytest.raises(FedMoEError, match="no folder for workers"):
        Home()


def test_a_folder_with_a_very_long_name_will_do(temporary, monkeypatch):
    long = temporary / ("x" * 200)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Home() as home:
        listener = home.listen("1-2")
        connection = home.connect("1-2", 60)
        assert connection
        connection.close()
        listener.close()
        assert home.connect("1-2", 60) is None
        home.leave("1-2", home.seat("1-2"))
        assert list(home.path.iterdir()) == []


def test_what_killed_workers_left_is_swept_away(temporary):
    with Home() as home:
        dead, alive = home.listen("1-2"), home.listen("3-4")
        home.log("1-2").close()
        home.log_path("3-4").write_text("still here")
        dead.close()
        home.sweep()
        assert {path.name for path in home.path.iterdir()} == {"3-4.sock", "3-4.log"}
        alive.close()
        home.sweep()
        assert {path.name for path in home.path.iterdir()} == {"3-4.log"}

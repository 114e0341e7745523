"""Files of clients' state: every bit of a file counts, and a full disk is named."""

import errno
import os

import pytest
import torch
from uploads import LAYOUT, deltas_of

from fedmoe.adapter import Adapter
from fedmoe.errors import CheckpointError
from fedmoe.runs.client_state import read_client_state, write_client_state


@pytest.fixture
def home(tmp_path):
    """The state of a client that took part in rounds 1 and 2."""
    home = tmp_path / "client-5" / "own"
    write_client_state(home, 1, 0, deltas_of(1))
    write_client_state(home, 2, 1, deltas_of(2))
    return home


def kept(home, before):
    number, values = read_client_state(home, before, LAYOUT)
    return number, values.flat.numpy().tobytes()


def refusal(home):
    try:
        kept(home, 3)
    except CheckpointError as error:
        return str(error)
    return ""


def test_it_comes_back_as_it_was(home):
    assert kept(home, 2) == (1, deltas_of(1).flat.numpy().tobytes())
    assert kept(home, 3) == (2, deltas_of(2).flat.numpy().tobytes())


def test_a_flipped_bit_anywhere_is_never_silent(home):
    path = home / "round-2.safetensors"
    data, wanted, refused = path.read_bytes(), kept(home, 3), 0
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) > 2 * header, "there are values, too"
    flips = [(at, bit) for at in range(0, len(data), 97) for bit in range(8)]
    for at, bit in [*flips, *((at, 0) for at in range(8, header, 5))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        said = refusal(home)
        assert said or kept(home, 3) == wanted, (at, bit)
        refused += bool(said)
        assert not said or (str(path) in said and "damaged" in said), said
    assert refused > 100


def test_a_one_that_became_infinite_is_refused_and_without_the_file_the_one_before_counts(tmp_path):
    ones = Adapter(LAYOUT, torch.ones(LAYOUT.size))
    for number in (1, 2):
        write_client_state(tmp_path, number, number - 1, ones)
    path = tmp_path / "round-2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # 0x3f80_0000 is 1.0, and 0x7f80_0000 inf
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"round-2\.safetensors is damaged: .* or remove it"):
        read_client_state(tmp_path, 3, LAYOUT)
    path.unlink()
    assert kept(tmp_path, 3) == (1, ones.flat.numpy().tobytes())


def test_a_file_under_another_rounds_name_is_refused(home):
    (home / "round-1.safetensors").rename(home / "round-7.safetensors")
    with pytest.raises(CheckpointError, match=r"round-7\.safetensors is damaged"):
        read_client_state(home, 8, LAYOUT)


def test_a_full_disk_names_the_file_and_what_was_kept_stays(home, monkeypatch):
    before = kept(home, 3)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"round-3\.safetensors: cannot be .* No space left"):
        write_client_state(home, 3, 2, deltas_of(3))
    assert kept(home, 4) == before
    assert {path.name for path in home.iterdir()} == {"round-1.safetensors", "round-2.safetensors"}


def test_a_run_that_resumes_two_rounds_back_still_finds_what_was_kept_before(tmp_path):
    for number in range(1, 6):
        write_client_state(tmp_path, number, number - 1, deltas_of(number))
    # Killed in round 5, with the checkpoint of round 4 unwritten and that of round 3 damaged.
    assert kept(tmp_path, 3) == (2, deltas_of(2).flat.numpy().tobytes())

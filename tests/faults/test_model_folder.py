"""A model's folder is whole or not there, and leaves nothing beside it."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from fedmoe.errors import FedMoEError
from fedmoe.system.folders import _check_writable, whole_folder, writing


def anything(_):
    """Whatever is there may be replaced."""


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "models/moe"
    with whole_folder(out, anything) as folder:
        (folder / "weights").write_text("new")
        assert not out.exists()
    assert everything(tmp_path) == ["models", "models/moe", "models/moe/weights"]


def test_what_ends_badly_leaves_nothing_not_even_parents(tmp_path):
    def interrupted():
        with whole_folder(tmp_path / "a/b/moe", anything) as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert everything(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    if (child := os.fork()) == 0:
        try:
            held = whole_folder(tmp_path / "moe", anything)
            (held.__enter__() / "weights").write_text("half")
        finally:
            os._exit(9)
    assert os.waitpid(child, 0)[1] == 9 << 8
    assert ".moe.unfinished/made/weights" in everything(tmp_path)
    with whole_folder(tmp_path / "moe", anything) as folder:
        assert everything(folder) == []
        (folder / "config").touch()
    assert everything(tmp_path) == ["moe", "moe/config"]


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "moe"
    with whole_folder(out, anything) as folder:
        with pytest.raises(FedMoEError, match=r"another process is making .*moe \(this process"):
            whole_folder(out, anything).__enter__()
        (folder / "weights").touch()
    assert everything(out) == ["weights"]


def test_a_lock_that_its_owner_has_just_removed_is_none(tmp_path, monkeypatch):
    real = fcntl.lockf
    monkeypatch.setattr(
        "fcntl.lockf",
        lambda file, how: (tmp_path / ".moe.unfinished/lock").unlink() or real(file, how),
    )
    with pytest.raises(FedMoEError, match=r"another process .* just finished"):
        whole_folder(tmp_path / "moe", anything).__enter__()


def test_a_folder_that_is_there_is_filled_at_the_end(tmp_path):
    out = tmp_path / "moe"
    out.mkdir()
    for name in ("weights", "notes"):
        (out / name).write_text("old")
    with whole_folder(out, anything) as folder:
        (folder / "weights").write_text("new")
        (folder / "card").write_text("new")
        assert (out / "weights").read_text() == "old"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "weights": "new",
        "card": "new",
        "notes": "old",
    }
    assert everything(tmp_path) == ["moe", "moe/card", "moe/notes", "moe/weights"]


def test_what_came_into_the_way_meanwhile_stays(tmp_path):
    out = tmp_path / "moe"

    def new(path):
        if path.exists():
            raise FedMoEError("exists")

    def late():
        with whole_folder(out, new) as folder:
            (folder / "weights").write_text("new")
            out.mkdir()

    with pytest.raises(FedMoEError, match="exists"):
        late()
    assert everything(tmp_path) == ["moe"]


def test_where_no_folder_can_be_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    out = tmp_path / "file/moe"
    with pytest.raises(FedMoEError, match=f"{out} cannot be made: Not a directory"):
        whole_folder(out, anything).__enter__()
    with pytest.raises(FedMoEError, match="cannot be made: File name too long"):
        whole_folder(tmp_path / ("x" * 300), anything).__enter__()
    (tmp_path / "moe").mkdir()
    monkeypatch.setattr(os, "access", lambda path, how: False)  # root may write everywhere
    with pytest.raises(FedMoEError, match="moe cannot be written: no permission"):
        whole_folder(tmp_path / "moe", anything).__enter__()
    assert everything(tmp_path) == ["file", "moe"]


def test_a_folder_that_files_cannot_be_moved_into_is_said(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with pytest.raises(FedMoEError, match="o is where a file system begins"):
        _check_writable(other, tmp_path, "o")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("text"),
        lambda path: Tokenizer(models.BPE()).save(str(path)),
        lambda path: np.save(path, np.zeros(10)),
    ],
    ids=["python", "tokenizers", "numpy"],
)
def test_a_full_disk_is_one_error_whoever_writes(write, tmp_path):
    full = tmp_path / "full.npy"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, writing("the work"):
        write(full)
    assert caught.value.errno == errno.ENOSPC


def test_errors_of_other_writers_name_the_place(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, writing("the work"):
        save_file({"a": torch.zeros(1)}, tmp_path / "nowhere/x")
    assert caught.value.filename == "the work"
    with (
        pytest.raises(FedMoEError, match="the work cannot be written: 9 requested"),
        writing("the work"),
    ):
        raise OSError("9 requested and 1 written")  # as numpy does
    with pytest.raises(ValueError, match="ours"), writing("the work"):
        raise ValueError("ours")

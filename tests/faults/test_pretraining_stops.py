"""`fedmoe pretrain` resumes where it stopped; obstacles are reported before it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pretrained import STEPS, tiny_recipe
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessRaisedException

from fedmoe.base_models.pretraining import train, work
from fedmoe.cli.main import main
from fedmoe.errors import FedMoEError
from fedmoe.models.build import ModelSettings, load_base


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture
def here(monkeypatch):
    """A worker runs in this process; its errors arrive as text, as those of a separate one do."""

    def spawn(function, given, nprocs, join):
        assert (nprocs, join) == (1, False)
        try:
            with torch.random.fork_rng():
                function(0, *given)
        except Exception as error:
            raise ProcessRaisedException(repr(error), 0, 0) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        return SimpleNamespace(join=lambda timeout: True)

    monkeypatch.setattr("torch.multiprocessing.spawn", spawn)
    for name in ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def no_training(monkeypatch):
    """Training fails the test."""
    monkeypatch.setattr("torch.multiprocessing.spawn", lambda *_, **__: pytest.fail("it trained"))
    for name in ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def refusal(folder, capsys, *overrides):
    """The one line that the command says in place of training."""
    assert main(["pretrain", str(folder / "p.yaml"), *overrides]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedmoe: error: ")
    assert said.count("\n") == 1, said
    return said


def steps_logged(folder):
    return [json.loads(line)["step"] for line in (folder / "w/log.jsonl").read_text().splitlines()]


def weights(folder):
    return (folder / "o/model.safetensors").read_bytes()


def test_the_last_step_is_logged_and_a_log_may_be_gone(here, tmp_path):
    recipe, rows = tiny_recipe(tmp_path), []
    train.pretrain(recipe, rows.append)
    assert steps_logged(tmp_path) == [STEPS] == [row["step"] for row in rows]
    load_base(ModelSettings(path=recipe.out))
    first = weights(tmp_path)
    (tmp_path / "w/log.jsonl").unlink()
    train.pretrain(recipe)
    assert weights(tmp_path) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "p.yaml", "w"]


def test_a_killed_pretraining_resumes_bitwise_and_logs_each_step_once(here, tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1)
    train.pretrain(tiny_recipe(tmp_path / "whole"))
    recipe, save = tiny_recipe(tmp_path / "killed"), train.Trainer._save

    def stop(trainer):
        if trainer.step == 7:
            raise Killed  # step 7 is logged; the checkpoint is of step 6
        save(trainer)

    monkeypatch.setattr(train.Trainer, "_save", stop)
    with pytest.raises(Killed):
        train.pretrain(recipe)
    monkeypatch.setattr(train.Trainer, "_save", save)
    assert steps_logged(tmp_path / "killed") == [1, 2, 3, 4, 5, 6, 7]
    with (tmp_path / "killed/w/log.jsonl").open("a") as log:
        log.write('{"step": 8, "tok')
    train.pretrain(recipe)
    assert steps_logged(tmp_path / "killed") == list(range(1, STEPS + 1))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_kill_before_the_first_checkpoint_leaves_no_lines(here, tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "w/log.jsonl").write_text('{"step": 5, "tokens": 640, "loss": 9}\n')
    train.pretrain(recipe)
    assert steps_logged(tmp_path) == [STEPS]


def test_a_finished_model_may_be_trained_longer(here, tmp_path):
    recipe = tiny_recipe(tmp_path)
    train.pretrain(recipe)
    short = weights(tmp_path)
    (tmp_path / "o/notes.txt").write_text("mine")
    train.pretrain(replace(recipe, tokens=1536, decay_share=0.5))
    assert steps_logged(tmp_path) == [STEPS, 12]
    assert weights(tmp_path) != short
    assert json.loads((tmp_path / "o/pretraining.json").read_text())["tokens_seen"] == 1536
    assert (tmp_path / "o/notes.txt").read_text() == "mine"


def test_a_model_that_is_half_written_does_not_replace_a_whole_one(here, tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    train.pretrain(recipe)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "write_card", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train.pretrain(replace(recipe, tokens=1536))
    assert caught.value.filename == recipe.out
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == whole


def test_what_is_at_out_is_not_written_over(no_training, tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    out = Path(recipe.out)
    out.touch()
    assert f"out '{out}' is a file" in refusal(tmp_path, capsys)
    assert f"{out}/below cannot be made" in refusal(tmp_path, capsys, f"out={out}/below")
    out.unlink()
    out.mkdir()
    (out / "config.json").touch()
    assert "holds config.json, and no pretraining.json" in refusal(tmp_path, capsys)
    about = out / "pretraining.json"
    for damaged in ("{", "[]", '{"recipe": 3}'):
        about.write_text(damaged)
        assert "pretraining.json is damaged" in refusal(tmp_path, capsys)
    about.write_text('{"recipe": {"seed": 0, "block": 16}}')
    assert "holds a model of another recipe (model, num_exercises," in refusal(tmp_path, capsys)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "pretraining.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "p.yaml", "w"]


def test_a_work_folder_that_cannot_be_made_is_said(no_training, tmp_path, capsys):
    tiny_recipe(tmp_path)
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        said = refusal(tmp_path, capsys, f"work={tmp_path / place}")
        assert f"work '{tmp_path / place}' cannot be written" in said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Files of a work folder that was trained in."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_recipe(folder)
    shape = {"progress": torch.tensor([4.0, 1.0], dtype=torch.float64)}
    work.save_checkpoint(folder / "w", shape | {"model.0": torch.zeros(1000)})
    rows = [{"step": step, "tokens": 128 * step, "loss": 9.0} for step in (1, 2, 3)]
    (folder / "w/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "w"


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_type(path):
    np.save(path, np.zeros((3, 3)))


def torn_inside(path):
    path.write_text('{"step": 1, "tok\n{"step": 2, "tokens": 256, "loss": 9.0}\n')


@pytest.mark.parametrize(
    ("name", "damage", "cure"),
    [
        ("checkpoint.safetensors", half, "training begins at its first step"),
        ("checkpoint.safetensors", lambda path: path.write_bytes(b""), "its first step"),
        ("tokens.npy", half, "delete tokens.npy, and the corpus is built again"),
        ("tokens.npy", lambda path: path.write_bytes(b""), "delete tokens.npy"),
        ("tokens.npy", lambda path: path.write_bytes(b"no array"), "delete tokens.npy"),
        ("tokens.npy", other_type, "float64"),
        ("sources.json", half, "delete tokens.npy"),
        ("sources.json", Path.unlink, "delete tokens.npy"),
        ("tokenizer/tokenizer.json", half, "delete tokens.npy"),
        ("tokenizer", lambda path: path.rename(path.with_name("moved")), "delete tokens.npy"),
        ("log.jsonl", torn_inside, "line 1"),
    ],
)
def test_what_is_damaged_is_said_before_training(
    no_training, trained, tmp_path, capsys, name, damage, cure
):
    tiny_recipe(tmp_path)
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / "w" / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "w" / name)
    said = refusal(tmp_path, capsys)
    assert f"{tmp_path / 'w' / name.partition('/')[0]} is damaged (" in said
    assert cure in said


def test_a_log_without_its_torn_end_is_whole(tmp_path):
    assert work.read_log(tmp_path) == []
    work.forget_after(3, tmp_path)
    assert list(tmp_path.iterdir()) == []
    whole = '{"step": 1, "tokens": 128, "loss": 9.0}\n'
    for torn in ("", "{", '{"step": 2, "tokens": 256}', "12", "\0\0\0"):
        (tmp_path / "log.jsonl").write_text(whole + torn)
        assert [row["step"] for row in work.read_log(tmp_path)] == [1]
    work.forget_after(1, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == whole
    work.forget_after(0, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_full_disk_in_a_worker_ends_the_command_in_one_line(here, tmp_path, capsys):
    tiny_recipe(tmp_path)
    (tmp_path / "w/checkpoint.tmp").symlink_to("/dev/full")
    said = refusal(tmp_path, capsys)
    assert said == f"fedmoe: error: {tmp_path / 'w'}: No space left on device\n"


def test_a_workers_own_mistakes_keep_their_traceback(here, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Trainer, "_train_step", lambda *_: 1 / 0)
    with pytest.raises(ProcessRaisedException, match="division by zero"):
        train.pretrain(tiny_recipe(tmp_path))


def test_an_error_for_the_user_in_a_worker_is_one_here(here, tmp_path, monkeypatch):
    def refuse(*_):
        raise FedMoEError("said there")

    monkeypatch.setattr(train.Trainer, "_train_step", refuse)
    with pytest.raises(FedMoEError, match="said there"):
        train.pretrain(tiny_recipe(tmp_path))


def command(folder):
    """Start the command in separate processes, two of them workers."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedmoe.cli.main", "pretrain", str(folder / "p.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_workers_that_meet_a_full_disk_say_so_in_one_line(tmp_path):
    tiny_recipe(tmp_path, 2)
    (tmp_path / "w/checkpoint.tmp").symlink_to("/dev/full")
    process = command(tmp_path)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert f"fedmoe: error: {tmp_path / 'w'}: No space left on device\n" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_command_resumes_bitwise(tmp_path):
    """Kill it where it would write its model, which leaves files; then resume."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        tiny_recipe(tmp_path / name, 2)
    whole = command(tmp_path / "whole")
    assert (whole.communicate(timeout=300)[1], whole.returncode)[1] == 0
    process = command(tmp_path / "killed")
    while not (tmp_path / "killed/w/checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = command(tmp_path / "killed")
    assert (again.communicate(timeout=300)[1], again.returncode)[1] == 0
    found, expected = (load_file(tmp_path / n / "o/model.safetensors") for n in ("killed", "whole"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["o", "p.yaml", "w"]

"""A run that a full disk or Ctrl-C stops says so, and goes on to the bits it would have had."""

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from sums import write_sums

from fedmoe.cli.main import main
from fedmoe.report.ledger import Ledger, read_ledger
from fedmoe.runs.client_side import ClientSide

SAME = ("kind", "round", "client", "tier", "top_k", "status", "tokens", "loss_before", "loss_after")
"""Keys of a ledger's line that do not depend on how fast a machine is."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    """Two rounds of two clients that keep controls, and what they have not sent yet."""
    home = tmp_path_factory.mktemp("stopped")
    write_sums(home, 6, 6)
    path = home / "stopped.yaml"
    path.write_text(
        f"""\
name: run
rounds: 2
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
budget: {{tiers: {{high: {{top_k: 2, share: 1.0}}}}}}
training: {{steps: 1, batch_size: 4, probe_examples: 4}}
aggregation: {{name: scaffold}}
upload: {{name: int4}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
"""
    )
    return path


def play(config, folder):
    """The exit code of the command."""
    words = [f"simulation.folder={folder}", "simulation.workers=1", "--resume", "auto", "--quiet"]
    return main(["run", str(config), *words])


def result(folder):
    """The results of a run that must not depend on what happened on the way."""
    run = folder / "run"
    told = [r for r in read_ledger(run / "ledger.jsonl") if r["kind"] != "resumed"]
    kept = [*sorted(run.glob("clients/*/*/*")), run / "adapter-last.safetensors"]
    return (
        [{k: line[k] for k in SAME if k in line} for line in told],
        {
            (path.relative_to(run), name): tensor.numpy().tobytes()
            for path in kept
            for name, tensor in load_file(path).items()
        },
    )


@pytest.fixture(autouse=True)
def _signals():
    """As in a process of its own: a background job ignores SIGINT, `fedmoe run` maps SIGTERM."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The result of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert play(config, folder) == 0
    lines, files = result(folder)
    assert len({path for path, _ in files}) == 2 * 2 * 2 + 1, "names, clients, rounds; the adapter"
    return lines, files


@pytest.mark.skipif(sys.platform != "linux", reason="it asks /proc which file is written")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint-1", "run/checkpoint-1.safetensors: cannot be written"),
        ("ledger", "run/ledger.jsonl: "),
        ("round-1", "round-1.safetensors: cannot be written"),
    ],
)
def test_on_a_full_disk_it_ends_with_the_files_name_and_goes_on_when_there_is_room(
    config, whole, tmp_path, monkeypatch, capsys, name, said
):
    fsync = os.fsync

    def full(fd):
        # Where a file system gives out its blocks late, it is here that it says so.
        if name in Path(os.readlink(f"/proc/self/fd/{fd}")).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert play(config, tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "No space left on device" in error
    assert play(config, tmp_path) == 0
    assert result(tmp_path) == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_ledger_that_the_disk_has_no_room_for_is_named_also_when_it_is_closed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.close()
    ledger._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    for act in (lambda: ledger.append({"kind": "end"}), ledger.close):
        with pytest.raises(OSError, match="No space left") as error:
            act()
        assert error.value.filename == str(path)


@pytest.mark.parametrize(("at", "by"), [(2, signal.SIGINT), (3, signal.SIGTERM)])
def test_ctrl_c_ends_it_with_130_and_the_same_command_goes_on(
    config, whole, tmp_path, monkeypatch, capsys, at, by
):
    """In the middle of the first round, and of the second."""
    train, trained = ClientSide.train, []

    def interrupted(prepared, task):
        trained.append(task.round)
        if len(trained) == at:
            os.kill(os.getpid(), by)
        return train(prepared, task)

    with monkeypatch.context() as patch:
        patch.setattr(ClientSide, "train", interrupted)
        assert play(config, tmp_path) == 130
    assert trained[-1] == (1 if at == 2 else 2)
    assert "--resume auto" in capsys.readouterr().err
    assert "interrupted" in (tmp_path / "run" / "report.html").read_text().lower()
    if at == 3:  # after a round there is an adapter
        ask = ["generate", "--run", str(tmp_path / "run"), "--max-new-tokens", "1", "hello"]
        assert main(ask) == 0
    assert play(config, tmp_path) == 0
    assert result(tmp_path) == whole

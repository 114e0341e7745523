"""A run that is killed at any moment goes on with the same command, and ends with the same bits."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import cache

import pytest
from played import in_child, play, result
from safetensors import safe_open
from sums import DEVICE, write_sums

from fedmoe.config import load_experiment
from fedmoe.errors import CheckpointError, FedMoEError
from fedmoe.progress.table import LiveTable
from fedmoe.report.ledger import read_ledger
from fedmoe.report.run import read_run
from fedmoe.runs import session
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.identity import identity
from fedmoe.runs.local.in_process import make_transport
from fedmoe.runs.prepare import prepare
from fedmoe.runs.resume import find, latest
from fedmoe.system.locks import alone_in

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="runs are forked"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    """Three rounds of four clients, with server momentum and validation."""
    home = tmp_path_factory.mktemp("resume")
    write_sums(home, 8, 8, kinds=True)
    path = home / "resume.yaml"
    path.write_text(
        f"""\
name: run
rounds: 3
clients_per_round: 3
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}, label: kind}}
partition: {{name: dirichlet, num_clients: 4}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{top_k: 1}}}}}}
training: {{steps: 1, batch_size: 4, probe_examples: 4}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
"""
    )
    return path


KINDS = {
    "flame": [
        "aggregation={name: flame}",
        "server_optimizer={name: momentum, beta: 0.5}",
        "robust={name: centred_clipping}",
        "rescaling={name: learned}",
        "upload.name=int4",
    ],
    "scaffold": ["aggregation={name: scaffold}", "upload.name=int4"],
    "passes": ["simulation.clients_per_pass=2", "upload.name=int4"],
    "fedbuff": [
        "aggregation={name: fedbuff, buffer_size: 2}",
        f"devices={{high: {DEVICE}, low: {DEVICE}}}",
    ],
}


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """A function that gives the folder above that of a run that nothing disturbed."""

    @cache
    def folder_of(kind=None):
        folder = tmp_path_factory.mktemp("whole")
        assert in_child(play, config, folder, KINDS.get(kind, []), "auto") == 0
        return folder

    return folder_of


@pytest.fixture(scope="module")
def whole(undisturbed):
    """A function that gives the result of such a run."""
    return lambda kind=None: result(undisturbed(kind))


@pytest.fixture
def ended(undisturbed, tmp_path):
    """A copy of a run that ended, in the test's folder."""
    return shutil.copytree(undisturbed() / "run", tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "times"),
    [("flame", 2), *(pytest.param(kind, 12, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bits(kind, times, config, tmp_path):
    count = multiprocessing.get_context("fork").Value("i", 0)
    whole = tmp_path / "whole"
    assert in_child(play, config, whole, KINDS[kind], "auto", None, count) == 0
    wanted = result(whole)
    for die_at in range(1, count.value + 1, max(1, count.value // times)):
        folder = tmp_path / f"at-{die_at}"
        assert in_child(play, config, folder, KINDS[kind], "auto", die_at) == -signal.SIGKILL
        assert in_child(play, config, folder, KINDS[kind], "auto") == 0
        assert result(folder) == wanted, die_at
        assert latest(folder, "run") == folder / "run"
        assert not list((folder / "run").glob("checkpoint-*"))


def test_a_run_in_passes_that_is_killed_before_its_second_ends_with_the_same_bits(config, tmp_path):
    passes = [*KINDS["passes"], "rounds=2"]

    def killed_in_its_second(*arguments):
        together = ClientSide.train_together

        def once(client, tasks):
            if tasks[0].round == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return together(client, tasks)

        ClientSide.train_together = once
        play(*arguments, in_turn=True)

    assert in_child(play, config, tmp_path / "whole", passes, "auto") == 0
    died = config, tmp_path / "died", passes, "auto"
    assert in_child(killed_in_its_second, *died) == -signal.SIGKILL
    assert [*(tmp_path / "died" / "run").glob("checkpoint-1.*")]
    assert in_child(play, *died) == 0
    assert result(tmp_path / "died") == result(tmp_path / "whole")


def test_killed_again_and_again_it_still_ends_with_the_same_bits(config, whole, tmp_path):
    lives = 1
    while in_child(play, config, tmp_path / "other", KINDS["scaffold"], "auto", 40) != 0:
        lives += 1
        assert lives < 12, "it never got to its end"
    assert lives > 2
    assert result(tmp_path / "other") == whole("scaffold")


def test_a_rehearsal_with_every_fault_loses_only_what_was_struck(config, tmp_path):
    faults = "faults=drop=.2,corrupt=.3,nan=.3,kill-client=.2"
    dying = [f"{faults},kill-server@2"]
    assert in_child(play, config, tmp_path / "whole", [faults], "auto") == 0
    assert in_child(play, config, tmp_path / "died", dying, "auto") == -signal.SIGKILL
    assert in_child(play, config, tmp_path / "died", dying, "auto") == 0
    assert result(tmp_path / "died") == result(tmp_path / "whole")
    run = read_run(tmp_path / "died" / "run")
    assert run.num_resumed == 1
    assert {fault["outcome"] for fault in run.faults} == {"lost", "refused"}
    struck = {(fault["round"], fault["client"]) for fault in run.faults}
    failed = {(c["round"], c["client"]) for c in run.clients if c["status"] == "failed"}
    assert failed == struck
    assert len(failed) < len(run.clients)
    assert "Faults injected" in (tmp_path / "died" / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """The folder of a run that was killed in its second round; tests change copies of it."""
    folder = tmp_path_factory.mktemp("killed")
    assert in_child(play, config, folder, [], "auto", 30, None, True) == -signal.SIGKILL
    return folder / "run"


@pytest.fixture
def interrupted(killed, tmp_path):
    """A copy of it, in the test's folder."""
    return shutil.copytree(killed, tmp_path / "run")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 16]) + data[-8:], "checksum"),
        (lambda data: b"", "damaged"),
    ],
    ids=["cut short", "a bit flipped", "empty"],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    config, whole, interrupted, tmp_path, damage, said, capfd
):
    newer = max(interrupted.glob("checkpoint-*"), key=lambda p: int(p.stem.rpartition("-")[2]))
    newer.write_bytes(damage(newer.read_bytes()))
    assert in_child(play, config, tmp_path, [], "auto") == 0
    assert said in capfd.readouterr().err
    assert result(tmp_path) == whole()


def unwritten(config, folder, overrides):
    """A run that is killed in its third round, with the second's checkpoint only begun."""
    write, train = session.write_checkpoint, ClientSide.train

    def stuck(folder, checkpoint):
        if checkpoint.state.round == 2:
            time.sleep(60)
        write(folder, checkpoint)

    def dying(self, task):
        if task.round == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, task)

    session.write_checkpoint, ClientSide.train = stuck, dying
    play(config, folder, overrides, "auto")


def test_killed_with_a_checkpoint_still_to_be_written_it_ends_with_the_same_bits(
    config, whole, tmp_path
):
    kept, run = KINDS["scaffold"], tmp_path / "run"
    assert in_child(unwritten, config, tmp_path, kept) == -signal.SIGKILL
    assert newest_file(run).name == "checkpoint-1.safetensors"
    # Even if the one that is whole is hurt: two rounds back, and clients still have what they kept.
    newest_file(run).write_bytes(b"")
    assert in_child(play, config, tmp_path, kept, "auto") == 0
    assert result(tmp_path) == whole("scaffold")


def newest_file(run):
    """The newest checkpoint of a run that was killed after its second one."""
    files = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.stem.rpartition("-")[2]))
    assert len(files) == 2, files
    return files[-1]


def test_a_ledger_that_is_shorter_than_its_checkpoint_says_sends_it_to_the_one_before(
    config, whole, interrupted, tmp_path, capfd
):
    needed = checkpoint_about(newest_file(interrupted))["about"]["seal"]["ledger_bytes"]
    os.truncate(interrupted / "ledger.jsonl", needed - 10)  # as a disk may that lost its power
    assert in_child(play, config, tmp_path, [], "auto") == 0
    assert f"continues after {needed} bytes" in capfd.readouterr().err
    assert result(tmp_path) == whole()


def checkpoint_about(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])


def run(config, folder, *overrides, resume="auto"):
    experiment = load_experiment(config, [f"simulation.folder={folder}", *overrides])
    session.run(experiment, LiveTable(num_rounds=3, quiet=True), make_transport, resume)


def test_when_all_are_damaged_it_says_so_and_changes_nothing(config, interrupted, tmp_path):
    for path in interrupted.glob("checkpoint-*"):
        path.write_bytes(b"x")
    before = (interrupted / "ledger.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        run(config, tmp_path)
    assert (interrupted / "ledger.jsonl").read_bytes() == before


def test_a_changed_setting_is_named_and_refused_unless_told(config, interrupted, tmp_path):
    changed = ["training.learning_rate=0.01"]
    with pytest.raises(CheckpointError, match=r"changed since: config .*learning_rate: 0.01"):
        run(config, tmp_path, *changed)
    assert in_child(play, config, tmp_path, changed, "anyway") == 0
    assert read_ledger(interrupted / "ledger.jsonl")[-1]["kind"] == "end"
    assert load_experiment(interrupted / "config.yaml").training.learning_rate == 0.01


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize(
    "change", ["partition.num_clients=5", "budget={tiers: {high: {top_k: 4}, other: {top_k: 1}}}"]
)
def test_with_other_clients_or_tiers_it_cannot_go_on_even_if_told(config, tmp_path, change):
    with pytest.raises(CheckpointError, match="of 4 clients in tiers high, low; now there are"):
        run(config, tmp_path, change, resume="anyway")


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("what", ["code", "model", "data", "libraries", "processor", "threads"])
def test_changed_code_model_or_data_is_refused(config, tmp_path, what, monkeypatch):
    names = {
        "code": "identity.code_digest",
        "model": "prepare.frozen_digest",
        "data": "data.RunData._digest",
        "libraries": "identity.version",
        "processor": "identity.processor",
        "threads": "identity._threads",
    }
    monkeypatch.setattr(f"fedmoe.runs.{names[what]}", lambda *_: "other")
    with pytest.raises(CheckpointError, match=f"changed since: .*{what}"):
        run(config, tmp_path)


def test_what_clients_run_on_their_machines_is_part_of_a_runs_code(server, tmp_path):
    on_nodes = replace(server, nodes_code=tmp_path)
    found = {identity(server)["code"]}
    for text in ("one", "two"):
        (tmp_path / "app.py").write_text(text)
        found.add(identity(on_nodes)["code"])
    assert len(found) == 3


@pytest.mark.usefixtures("ended")
def test_a_run_that_ended_with_another_model_is_not_taken_for_this_one(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedmoe.runs.prepare.frozen_digest", lambda *_: "other")
    with pytest.raises(CheckpointError, match="changed since: model"):
        run(config, tmp_path)


@pytest.fixture
def server(config, tmp_path):
    """The server's side of the run in the test's folder."""
    return prepare(load_experiment(config, [f"simulation.folder={tmp_path}"])).server


def test_a_run_that_ended_is_not_repeated_and_without_resume_a_new_folder_is_made(
    config, ended, server, tmp_path
):
    ledger = (ended / "ledger.jsonl").read_bytes()
    assert in_child(play, config, tmp_path, [], "auto") == 0
    assert (ended / "ledger.jsonl").read_bytes() == ledger
    with find(server, "no") as found:
        assert found.folder == tmp_path / "run-2"


@pytest.mark.parametrize("own", ["thesis.txt", "config.yaml"])
def test_a_folder_of_that_name_that_is_no_runs_is_left_alone(server, tmp_path, own):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / own).write_text("mine")
    with find(server, "auto") as found:
        assert found.folder == tmp_path / "run-2"
    assert (tmp_path / "run" / own).read_text() == "mine"


@pytest.mark.usefixtures("interrupted")
def test_a_folder_in_which_another_process_works_is_left_to_it(server, tmp_path):
    said = "another process is at work"
    with alone_in(tmp_path / "run"), pytest.raises(FedMoEError, match=said), find(server, "auto"):
        pass

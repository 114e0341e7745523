"""A run's folder that was edited or damaged while nobody worked in it: what it says, and does."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import warnings
from dataclasses import replace

import pytest
from safetensors import safe_open
from sums import sums_config

from fedmoe.config import load_experiment
from fedmoe.errors import CheckpointError, FedMoEError, FedMoEWarning
from fedmoe.report import read_ledger, write_report
from fedmoe.runs import session
from fedmoe.runs.local.pool import WAITING
from fedmoe.runs.prepare import prepare
from fedmoe.runs.resume import Resume, find
from fedmoe.runs.seal import FILES, SEAL
from fedmoe.system import files as atomic

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="runs are forked"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
SMALL = ("config.yaml", "manifest.json", "environment.json", "run-id")


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    """Three rounds of two clients."""
    home = tmp_path_factory.mktemp("edited")
    rest = """\
name: run
rounds: 3
partition: {name: iid, num_clients: 2}
budget: {tiers: {high: {top_k: 4}, low: {top_k: 1}}}
training: {steps: 1, batch_size: 2, probe_examples: 2, learning_rate: 0.005}
evaluation: {validation_examples: 2, test_examples: 2, max_new_tokens: 1}
"""
    return sums_config(home, tiny_folder, rest)


def killed_after(config, folder, name):
    """A run whose process is killed when it has written the file of that name."""
    replaced = os.replace

    def watched(source, target):
        replaced(source, target)
        if os.path.basename(target) == name:
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.os.replace = watched
    session.run(load_experiment(config, [f"simulation.folder={folder}"]))


@pytest.fixture(scope="module")
def folders(config, tmp_path_factory):
    """The run killed after its second round, and another one that has ended."""
    home = tmp_path_factory.mktemp("folders")
    experiment = load_experiment(config, [f"simulation.folder={home / 'ended'}"])
    session.run(experiment)
    arguments = config, home / "killed", "checkpoint-2.safetensors"
    child = multiprocessing.get_context("fork").Process(target=killed_after, args=arguments)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    return home


@pytest.fixture
def copied(folders, tmp_path):
    """A function that copies one of them into the test's folder."""
    return lambda which: shutil.copytree(folders / which / "run", tmp_path / "run")


@pytest.fixture(scope="module")
def server(config):
    return prepare(load_experiment(config)).server


@pytest.fixture
def resumed(server, tmp_path):
    """A function that resumes the run in the test's folder, and returns what is said meanwhile."""
    e = server.setup.experiment
    e = replace(e, simulation=replace(e.simulation, folder=str(tmp_path)))
    here = replace(server, setup=replace(server.setup, experiment=e))

    def resume(how: Resume = "auto"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with find(here, how):
                pass
        return [str(w.message) for w in said if issubclass(w.category, FedMoEWarning)]

    return resume


def read(run):
    return (run / "report.html").read_text()


def flip(path):
    """Flip one bit in the middle of a file, so that it still reads as text."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("which", ["killed", "ended"])
def test_an_untouched_folder_says_nothing(copied, resumed, which):
    copied(which)
    assert resumed() == []


@pytest.mark.parametrize("which", ["killed", "ended"])
def test_a_flipped_bit_or_a_lost_file_is_said_and_undone(copied, resumed, which):
    run = copied(which)
    whole = {name: (run / name).read_bytes() for name in SMALL}
    for name in SMALL:
        flip(run / name)
    said = resumed()
    assert [name for name in SMALL if any(f"run/{name} was edited or dam" in s for s in said)]
    assert len(said) == len(SMALL)
    assert {name: (run / name).read_bytes() for name in SMALL} == whole
    for name in SMALL:
        (run / name).unlink()
    assert sum("is gone; it is written again" in s for s in resumed()) == len(SMALL)
    assert {name: (run / name).read_bytes() for name in SMALL} == whole
    assert resumed() == []


@pytest.mark.parametrize("which", ["killed", "ended"])
def test_an_edited_learning_rate_is_not_what_the_report_says(copied, resumed, which):
    path = copied(which) / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.005", "learning_rate: 0.05"))
    (said,) = resumed()
    assert "expected 'learning_rate: 0.005', found 'learning_rate: 0.05'" in said
    write_report(path.parent)
    assert re.findall(r"training.learning_rate</th><td[^>]*>(.*?)<", read(path.parent)) == ["0.005"]


@pytest.mark.parametrize("which", ["killed", "ended"])
def test_an_edited_ledger_is_refused(copied, resumed, which):
    ledger = copied(which) / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole.replace('"examples": ', '"examples": 1', 1))
    assert read_ledger(ledger), "it still reads as a ledger"
    with pytest.raises(CheckpointError, match="edited or damaged since"):
        resumed()
    ledger.write_text(whole[: whole.rstrip().rfind("\n") + 1])
    if which == "ended":  # without its last line it would be taken for an interrupted run
        with pytest.raises(CheckpointError, match="edited or damaged since the run ended"):
            resumed()
        assert any("edited or damaged since the run ended" in s for s in resumed("anyway"))
        assert (ledger.parent / "adapter-last.safetensors").exists()


@pytest.mark.parametrize("which", ["killed", "ended"])
@pytest.mark.parametrize("left", ["gone", "empty"])
def test_a_run_without_its_ledger_is_refused_and_nothing_is_removed(copied, resumed, which, left):
    run = copied(which)
    (run / "ledger.jsonl").unlink()
    if left == "empty":
        (run / "ledger.jsonl").touch()
    before = {path.name for path in run.iterdir()} | {".lock"}
    expected = "ledger.jsonl is gone" if left == "gone" else "ledger of 0|found 0 of"
    for how in ("auto", "anyway") if left == "gone" else ("auto",):
        with pytest.raises(CheckpointError, match=expected):
            resumed(how)
    assert {path.name for path in run.iterdir()} == before
    assert [path.name for path in run.parent.iterdir()] == ["run"], "and no folder is made"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(copied, resumed, name):
    path = copied("ended") / name
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(CheckpointError, match=rf"run/{name}: expected a file, found a folder"):
        resumed()


def test_a_checkpoint_that_is_a_folder_is_passed_over_or_named(copied, config):
    run = copied("killed")
    (run / "checkpoint-1.safetensors").unlink()
    (run / "checkpoint-1.safetensors").mkdir()
    experiment = load_experiment(config, [f"simulation.folder={run.parent}"])
    with pytest.raises(CheckpointError, match=r"checkpoint-1.safetensors: cannot be written"):
        session.run(experiment, resume="auto")


def test_a_damaged_seal_is_named(copied, resumed):
    run = copied("ended")
    (run / SEAL).write_text("{")
    with pytest.raises(CheckpointError, match=r"seal\.json is damaged"):
        resumed()
    (run / SEAL).unlink()
    (said,) = resumed()
    assert "whether its files were edited cannot be told" in said
    assert resumed() == []


@pytest.mark.parametrize("name", ["manifest.json", "environment.json", "activations.npz"])
@pytest.mark.parametrize("damage", ["cut", "a folder"])
def test_a_report_names_the_file_that_it_cannot_read(copied, name, damage):
    path = copied("ended") / name
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.mkdir()
    with pytest.raises(FedMoEError, match=f"{name} is damaged: .*--resume auto"):
        write_report(path.parent)


def test_updates_that_a_killed_run_left_waiting_are_removed(copied, config):
    run = copied("ended")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pid = pool.apply(os.getpid)
    (left := run.parent / f"{WAITING}{pid}-x").mkdir()
    (ours := run.parent / f"{WAITING}{os.getpid()}-x").mkdir()
    experiment = load_experiment(config, [f"simulation.folder={run.parent}"])
    session.run(experiment, resume="auto")
    assert (left.exists(), ours.exists()) == (False, True)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(copied, config):
    run = copied("killed")
    for path in run.glob("checkpoint-*"):
        path.unlink()
    ledger = (run / "ledger.jsonl").read_bytes()
    experiment = load_experiment(config, [f"simulation.folder={run.parent}"])
    with pytest.raises(CheckpointError, match=r"none of its checkpoints: they are gone"):
        session.run(experiment, resume="auto")
    assert (run / "ledger.jsonl").read_bytes() == ledger


def test_the_best_adapter_is_that_of_a_round_whose_checkpoint_is_there(copied, folders, config):
    """Killed as its second checkpoint was written, the run keeps the first round's until then."""
    best = copied("killed") / "adapter-best.safetensors"
    with safe_open(best, "pt") as file:
        assert file.metadata()["round"] == "1"
    session.run(load_experiment(config, [f"simulation.folder={best.parents[1]}"]), resume="auto")
    assert best.read_bytes() == (folders / "ended/run" / best.name).read_bytes()

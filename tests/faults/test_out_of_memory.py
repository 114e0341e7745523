"""A client that runs out of memory trains with fewer experts, and the round goes on."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from sums import write_sums

from fedmoe.adapter import Adapter
from fedmoe.budget.measure import measure
from fedmoe.budget.shape import Setting
from fedmoe.config import load_experiment
from fedmoe.errors import ModelError, WireError
from fedmoe.messages.records import Task
from fedmoe.progress.table import LiveTable
from fedmoe.report.ledger import read_ledger
from fedmoe.runs import client_side as preparing
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.runs.session import run


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_folder):
    home = tmp_path_factory.mktemp("memory")
    write_sums(home, 6, 6)
    path = home / "memory.yaml"
    path.write_text(
        f"""\
rounds: 1
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
budget: {{tiers: {{high: {{top_k: 4, share: 1.0}}}}}}
training: {{steps: 1, batch_size: 4, probe_examples: 4}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {home / "runs"}}}
"""
    )
    return load_experiment(path)


def short_of_memory(most, monkeypatch):
    """Training ends half-way, with gradients lying about, where more than `most` are active."""
    train = preparing.train_client

    def starved(model, rows, pad, task, *others):
        if task.top_k > most:
            model.grad.fill_(7.0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(model, rows, pad, task, *others)

    monkeypatch.setattr(preparing, "train_client", starved)


def task_of(ready, top_k):
    state = ready.server.first_state()
    return Task(
        1, 0, "high", top_k, state.rescalers["high"], ready.server.send(state.adapter, "high")
    )


def test_it_trains_with_as_many_as_fit_as_if_it_had_been_asked_to(experiment, monkeypatch):
    ready = prepare(experiment)
    plain = ready.client.train(task_of(ready, 2))
    short_of_memory(2, monkeypatch)
    starved = ready.client.train(task_of(ready, 4))
    assert starved.top_k == 2
    assert torch.equal(starved.delta.flat, plain.delta.flat)
    assert torch.equal(starved.counts, plain.counts)


def test_the_server_takes_it_and_the_ledger_says_it(experiment, monkeypatch, tmp_path, capsys):
    short_of_memory(3, monkeypatch)
    here = replace(experiment.simulation, folder=str(tmp_path))
    folder = run(replace(experiment, simulation=here), LiveTable(num_rounds=1), InProcess)
    clients = [r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] == "client"]
    assert [(c["status"], c["top_k"], c["requested_top_k"]) for c in clients] == [("ok", 3, 4)] * 2
    assert "ran out of memory with k = 4 and trained with k = 3" in capsys.readouterr().out


def test_where_not_even_one_fits_it_is_said(experiment, monkeypatch):
    ready = prepare(experiment)
    short_of_memory(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        ready.client.train(task_of(ready, 4))


def test_nobody_may_send_more_than_was_asked_for(experiment):
    ready = prepare(experiment)
    asked, more = task_of(ready, 2), task_of(ready, 3)
    with pytest.raises(WireError, match="top_k 3; its task has 2"):
        ready.server.read(ready.client.answer(more), asked)
    assert isinstance(ready.server.read(ready.client.answer(asked), more).delta, Adapter)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def gone():
    os._exit(3)


def starved():
    torch.empty(2**46)


def wrong():
    raise ValueError("a shape")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("go", "error", "said"),
    [
        (killed, MemoryError, "its process was killed; the system may have been out of memory"),
        (starved, MemoryError, "DefaultCPUAllocator"),
        (gone, ModelError, "its process ended with exit code 3"),
        (wrong, ModelError, "a shape"),
    ],
)
def test_a_measured_step_tells_want_of_memory_from_other_ends(go, error, said):
    with pytest.raises(error, match=said):
        measure(lambda _: go, Setting(2, 1, 8, 2), 1, torch.device("cpu"), 0)

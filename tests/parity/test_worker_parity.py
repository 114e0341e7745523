"""A node's worker gives this process's bits, loads its model once, and ends with its node."""

import os
import signal
import subprocess
import sys
import time

import pytest
from federation import Federation

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

from clients.worker_calls import NodeWorker
from clients.worker_frames import Order
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Message
from fedmoe.rounds import plan_round
from fedmoe.system.processes import Process, process_of


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    process = subprocess.Popen(["sleep", "600"])
    worker = NodeWorker(process_of(process.pid))
    yield worker
    if found := worker.look():
        os.kill(found.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def asked(worker, experiment_file, task):
    """The update's bytes, from the worker."""
    packed = pack_task(task)
    order = Order(experiment_file.read_text(), "", packed.scalars, None, [], "")
    return worker.ask(order, packed.buffer, 600.0)


def expected(prepared, task):
    """The update's bytes, from this process."""
    return bytes(prepared.client.answer(task).buffer)


def test_a_worker_gives_the_same_bits_and_loads_once(worker, prepared, experiment_file):
    first, second, *_ = plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )
    for task in (first, second):
        packed = asked(worker, experiment_file, task)
        assert bytes(packed.buffer) == expected(prepared, task)
        assert (
            prepared.server.read(Message(packed.scalars, packed.buffer), task).client == task.client
        )
    assert worker.look().loads == 1


@pytest.mark.slow
def test_a_killed_worker_changes_no_bits(worker, prepared, experiment_file):
    tasks = plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )
    before = [bytes(asked(worker, experiment_file, task).buffer) for task in tasks[:2]]
    os.kill(worker.look().pid, signal.SIGKILL)
    assert [bytes(asked(worker, experiment_file, task).buffer) for task in tasks[:2]] == before


@pytest.mark.slow
def test_a_supernode_loads_its_model_once_and_takes_its_worker_along(
    tmp_path, monkeypatch, experiment_file, plain_digest
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "flower").mkdir()
    federation = Federation(tmp_path / "flower")
    try:
        federation.superlink()
        node = federation.supernode()
        records = federation.flwr_run(config=experiment_file, node_seconds=300)
        assert records[-1]["adapter_sha256"] == plain_digest
        (path,) = (tmp_path / "fedmoe").glob("*.sock")
        found = NodeWorker(Process(*map(int, path.stem.split("-")))).look()
        assert found.loads == 1
        node.kill()
        node.wait()  # until somebody has taken leave of it, it counts as there
        end = time.monotonic() + 60
        while process_of(found.pid):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert not path.exists()
    finally:
        federation.stop()

"""When a node's worker may go: after its first caller, and while nobody can take its place."""

import fcntl
import os
import sys
from types import SimpleNamespace

import pytest

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

import clients.worker
from clients.worker import Worker
from clients.worker_home import Home
from fedmoe.system.processes import process_of


@pytest.fixture
def unborn(tmp_path, monkeypatch):
    """A worker in this process that may not idle at all, and its first caller."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    node = process_of(os.getpid())
    assert node
    with Home() as home, home.listen(node.name) as listener:
        worker = Worker(listener, home.seat(node.name), node, idle_seconds=0.0)
        with worker.home, home.connect(node.name, 60.0) as caller:
            yield worker, caller


def test_a_worker_waits_for_its_first_caller_however_soon_it_may_idle(unborn, monkeypatch):
    worker, caller = unborn
    assert worker._wanted()
    threads = []

    def thread(target, args, daemon):
        return SimpleNamespace(start=lambda: threads.append((target, args)))

    once = iter([worker.listener.accept()])
    monkeypatch.setattr(clients.worker, "Thread", thread)
    monkeypatch.setattr(worker, "listener", SimpleNamespace(accept=once.__next__))
    with pytest.raises(StopIteration):
        worker._accept()
    worker.rested = 0.0
    assert worker._wanted(), "its caller's thread is yet to run"
    caller.close()
    ((serve, arguments),) = threads
    serve(*arguments)
    assert not worker._wanted()


def test_a_worker_leaves_while_nobody_else_may_take_its_place(unborn, monkeypatch):
    worker, _ = unborn
    left = []

    def leave(_, *place):
        with Home() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.append(place)

    monkeypatch.setattr(Home, "leave", leave)
    monkeypatch.setattr(os, "_exit", left.append)
    worker._end()
    assert left == [(worker.node.name, worker.seat), 0]

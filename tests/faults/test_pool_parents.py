"""Workers whose parent dies, and what it leaves: nothing stays."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from fedmoe.runs.local.pool import Pool
from fedmoe.system.workforce import Job, Workforce

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked"),
    # Python 3.12 and later warn of every fork in a process with threads; torch's are idle here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def nap(_, seconds):
    time.sleep(seconds)


def work_for_a_minute(told):
    """The life of a parent: two workers, busy."""
    # As in a process of its own: a background job ignores SIGINT, `fedmoe run` maps SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    force = Workforce(None, 2, print)
    told.send([worker.process.pid for worker in force.workers])
    list(force.carry_out(Job(n, nap, 60, "nap") for n in range(2)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_survives_its_parent(number):
    context = multiprocessing.get_context("fork")
    hears, told = context.Pipe()
    parent = context.Process(target=work_for_a_minute, args=(told,))
    parent.start()
    workers = hears.recv()
    time.sleep(0.3)
    assert len(workers) == 2
    assert all(map(alive, workers))
    os.kill(parent.pid, number)
    parent.join(20)
    assert parent.exitcode == (1 if number == signal.SIGINT else -number)
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_a_killed_process_left_waiting_is_swept_away(tmp_path):
    dead, alive = tmp_path / ".waiting-999999999-x", tmp_path / f".waiting-{os.getpid()}-x"
    dead.mkdir()
    alive.mkdir()
    Pool(cast(Any, None), cast(Any, None), 1, folder=tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]

"""A node's worker: it keeps its model, is replaced when it dies, and ends with its node."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

import clients.worker_calls
from clients.worker_calls import BUNDLE, NodeWorker, WorkerError
from clients.worker_frames import HEAD, MAGIC, Order, receive
from clients.worker_home import Home
from fedmoe.errors import FedMoEError, WireError
from fedmoe.system.digests import code_digest
from fedmoe.system.processes import process_of

RESIDENT = '''
"""In the place of a model: the experiment in capitals. What to do with a task its scalars say."""

import json
import os
import time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from fedmoe.errors import WireError


@lru_cache(maxsize=1)
def resident(experiment, overrides):
    return experiment.upper()


def carry_out(order, buffer):
    model, flag = resident(order.experiment, order.overrides), Path(order.state)
    match order.scalars:
        case "refuse":
            raise WireError("not today", "size")
        case "fail":
            raise ZeroDivisionError("by zero")
        case "die":
            os.kill(os.getpid(), 9)
        case "die once" if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), 9)
        case "wait":
            while not flag.exists():
                time.sleep(0.02)
        case text if text.startswith("{"):
            asked = json.loads(text)
            if (k := asked["top_k"] - order.fewer) > asked["fits"]:
                word, kills = flag.read_text().split()
                flag.write_text(f"{word} {int(kills) + asked['counted']}")
                os.kill(os.getpid(), 9)
            model = f"k={k}"
    scalars, answer = f"{os.getpid()} {model}", bytes(buffer)[::-1]
    return SimpleNamespace(scalars=scalars, buffer=answer, checksum=order.checksum)
'''
CLIENT_APP = """
import sys
from clients.worker_calls import answer
from clients.worker_frames import Order

print(answer(Order("tiny", "", "", None, [], ""), b"abc", 60.0, 60.0).scalars)
assert "torch" not in sys.modules
"""


@dataclass(frozen=True)
class Stage:
    """A stand-in for a SuperNode, a folder for sockets, and bundles whose model is a stub."""

    folder: Path
    process: subprocess.Popen
    bundles: list[Path] = field(default_factory=list)

    def bundle(self, stub=RESIDENT):
        folder = self.folder / f"bundle-{len(self.bundles)}"
        shutil.copytree(BUNDLE / "clients", folder / "clients")
        (folder / "clients/resident.py").write_text(stub)
        self.bundles.append(folder)
        return folder

    def worker(self, idle_seconds=60.0, stub=RESIDENT):
        node = process_of(self.process.pid)
        assert node
        return NodeWorker(node, idle_seconds, self.bundle(stub))

    def files(self):
        """The files beside the sockets, by suffix."""
        return {path.suffix for path in (self.folder / "fedmoe").iterdir()}


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    process = subprocess.Popen(["sleep", "600"])
    yield Stage(tmp_path, process)
    process.kill()
    process.wait()
    # Workers end by themselves now; here they are only spared the wait.
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"clients.worker" in words and str(process.pid).encode() in words:
                os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.fixture
def worker(stage):
    return stage.worker()


def ask(worker, scalars="", experiment="tiny", state="", seconds=60.0):
    """The pid that answered, and the model it has."""
    order = Order(experiment, "", scalars, 7, [], str(state))
    packed = worker.ask(order, b"abc", seconds)
    assert (bytes(packed.buffer), packed.checksum) == (b"cba", 7)
    pid, model = packed.scalars.split()
    return int(pid), model


def until(condition):
    """Wait for what must come to be, however busy the machine."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid):
    return process_of(pid) is None


def test_the_second_task_loads_nothing_and_another_experiment_does(worker):
    assert worker.look() is None
    first, second = ask(worker), ask(worker)
    assert first == second
    assert (worker.look().pid, worker.look().loads) == (first[0], 1)
    assert ask(worker, experiment="other") == (first[0], "OTHER")
    assert worker.look().loads == 2


def test_a_worker_outlives_the_process_that_called_it(stage, worker):
    script = stage.folder / "flwr-clientapp"
    script.write_text(CLIENT_APP)
    paths = [str(worker.bundle), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    said = [
        subprocess.run(
            [sys.executable, script], env=environment, check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    # Its node is what starts such processes: here, this one.
    mine = NodeWorker(process_of(os.getpid()), 60.0, worker.bundle)
    found = mine.look()
    assert said == [f"{found.pid} TINY\n"] * 2
    assert found.loads == 1
    # A terminal that is closed, or Ctrl-C there, is not its business.
    assert os.getsid(found.pid) == found.pid
    os.kill(found.pid, signal.SIGKILL)


def test_what_goes_wrong_comes_back_and_the_worker_stays(worker):
    pid, _ = ask(worker)
    with pytest.raises(WireError, match="not today") as refused:
        ask(worker, "refuse")
    assert refused.value.code == "size"
    with pytest.raises(WorkerError, match=r"ZeroDivisionError: by zero\n(?s:.*)in carry_out"):
        ask(worker, "fail")
    assert ask(worker) == (pid, "TINY")


def test_a_worker_that_was_killed_is_replaced(worker):
    first = ask(worker)
    os.kill(first[0], signal.SIGKILL)
    until(lambda: gone(first[0]))
    second = ask(worker)
    assert second[0] != first[0]
    assert second[1] == first[1]


def test_a_task_whose_worker_dies_is_done_again(stage, worker):
    first = ask(worker)
    second = ask(worker, "die once", state=stage.folder / "died")
    assert second[0] != first[0]
    assert worker.look().pid == second[0]


def test_a_task_that_ends_two_workers_fails_and_says_how(stage, worker):
    with pytest.raises(FedMoEError, match=r"2 times, the last by SIGKILL.*\d+-\d+\.log"):
        ask(worker, "die")


@pytest.fixture
def events(tmp_path, monkeypatch):
    """In the place of a control group's: two processes were killed in it before."""
    path = tmp_path / "memory.events"
    path.write_text("oom_kill 2")
    monkeypatch.setattr(clients.worker_calls, "oom_events", lambda _: path)
    return path


def test_a_task_whose_worker_the_kernel_kills_for_memory_is_done_with_fewer_experts(
    worker, events, caplog
):
    ask(worker)  # so that the first to die was not started by who asks it
    task = json.dumps({"top_k": 4, "fits": 2, "counted": 1})
    assert ask(worker, task, state=events)[1] == "k=2"
    assert events.read_text() == "oom_kill 4"
    first, second = caplog.messages
    assert first.endswith("is done again with 1 expert(s) fewer")
    assert second.endswith("is done again with 2 expert(s) fewer")


@pytest.mark.parametrize(("top_k", "counted"), [(4, 0), (1, 1)])
def test_killed_by_hand_or_with_one_expert_it_is_done_again_as_it_was(
    worker, events, caplog, top_k, counted
):
    task = json.dumps({"top_k": top_k, "fits": 0, "counted": counted})
    with pytest.raises(FedMoEError, match="2 times, the last by SIGKILL; is there enough memory"):
        ask(worker, task, state=events)
    assert not caplog.messages


def test_a_worker_that_cannot_start_is_a_reason(stage, worker):
    (worker.bundle / "clients/worker.py").write_text("print('no such luck')\nraise SystemExit(3)")
    with pytest.raises(FedMoEError, match="ended by exit code 3; its log is ") as error:
        ask(worker)
    assert "no such luck" in Path(str(error.value).split("its log is ")[1]).read_text()


def test_tasks_at_once_start_one_worker(worker, monkeypatch):
    listen, listened = Home.listen, []

    def slowly(*arguments):
        listened.append(arguments)
        time.sleep(0.3)  # time enough for the others to find nobody there
        return listen(*arguments)

    monkeypatch.setattr(Home, "listen", slowly)
    # What takes as long as it takes would let them come one after another.
    code = code_digest(worker.bundle / "clients")
    monkeypatch.setattr(clients.worker_calls, "code_digest", lambda _: code)
    with ThreadPoolExecutor(4) as pool:
        assert len({pid for pid, _ in pool.map(lambda _: ask(worker), range(8))}) == 1
    assert len(listened) == 1


def test_a_worker_says_hello_while_it_works(stage, worker):
    flag = stage.folder / "enough"
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ask, worker, "wait", state=flag)
        until(worker.look)
        assert not answered.done()
        flag.touch()
        assert answered.result()[0] == worker.look().pid


def test_an_idle_worker_ends_and_leaves_nothing(stage):
    pid, _ = ask(stage.worker(idle_seconds=0.1))
    until(lambda: gone(pid))
    assert stage.files() == set()


def test_a_worker_ends_with_its_node_in_the_middle_of_a_task(stage, worker):
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(ask, worker, "wait", state=stage.folder / "never")
        until(worker.look)
        pid = worker.look().pid
        stage.process.kill()
        until(lambda: gone(pid))
        # Its caller would start another, which has no node, either.
        with pytest.raises(FedMoEError):
            lost.result()
    assert ".sock" not in stage.files()


def test_a_worker_that_takes_too_long_is_ended(stage, worker):
    pid, _ = ask(worker)
    with pytest.raises(FedMoEError, match=r"no update within 0.1 s"):
        ask(worker, "wait", state=stage.folder / "never", seconds=0.1)
    until(lambda: gone(pid))
    assert ask(worker)[0] != pid


def test_a_worker_of_other_code_is_replaced(stage):
    old, new = stage.worker(), stage.worker(stub=RESIDENT.replace("upper", "title"))
    pid, _ = ask(old)
    other, model = ask(new)
    assert (other != pid, model) == (True, "Tiny")
    until(lambda: gone(pid))
    assert new.look().pid == other


GARBAGE = {
    "web": b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n",
    "large header": HEAD.pack(MAGIC, 2**31, 0),
    "large buffer": HEAD.pack(MAGIC, 2, 2**60) + b"{}",
    "no JSON": HEAD.pack(MAGIC, 4, 0) + b"\xff{}[",
    "deep": HEAD.pack(MAGIC, 10**5, 0) + b"[" * 10**5,
    "no object": HEAD.pack(MAGIC, 2, 0) + b"[]",
    "other kind": HEAD.pack(MAGIC, 16, 0) + b'{"kind": "done"}',
    "no fields": HEAD.pack(MAGIC, 17, 0) + b'{"kind": "order"}',
}


def test_garbage_is_refused_and_does_no_harm(worker):
    before = ask(worker)
    for data in GARBAGE.values():
        with Home() as home, home.connect(worker.node.name, 60.0) as connection:
            assert receive(connection)[0]["kind"] == "hello"
            connection.sendall(data)
            assert receive(connection)[0]["kind"] == "reason"
    with Home() as home, home.connect(worker.node.name, 60.0) as connection:
        connection.sendall(HEAD.pack(MAGIC, 100, 10**9) + b"{")  # and hangs up
    assert ask(worker) == before

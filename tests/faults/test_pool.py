"""Workers that die, jobs that raise, parents that vanish: the round goes on, nothing stays."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from said_rows import said_rows
from sides import run_over

from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.messages.records import Failure, Update
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.rescaling import LearnedRescaling
from fedmoe.rounds import finish_round, plan_round
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.local.pool import WAITING, Pool
from fedmoe.runs.local.schedule import expected_work
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked"),
    # Python 3.12 and later warn of every fork in a process with threads; torch's are idle here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@dataclass(frozen=True, eq=False)
class Deadly(ClientSide):
    """A run in which some clients kill their process in the middle of their second step."""

    folder: Path = Path()
    """A file for every worker that was killed."""
    once: frozenset[int] = frozenset()
    always: frozenset[int] = frozenset()

    def answer(self, task):
        marks = list(self.folder.glob(f"{task.round}-{task.client}-*"))
        if task.client in self.always or (task.client in self.once and not marks):
            mark = self.folder / f"{task.round}-{task.client}-{os.getpid()}"
            kill_at_second_step(mark)
        return super().answer(task)


def kill_at_second_step(mark):
    """From now on in this process: it lasts for one backward pass, and no further."""
    backward, calls = torch.Tensor.backward, []

    def deadly(*arguments, **keywords):
        calls.append(None)
        if len(calls) == 2:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(*arguments, **keywords)

    torch.Tensor.backward = deadly


class Told:
    """A watch that remembers."""

    def injected(self, event):
        raise AssertionError(event)

    def __init__(self):
        self.replacements, self.schedules = [], []

    def replaced(self, event):
        self.replacements.append(event)

    def scheduled(self, schedule):
        self.schedules.append(schedule)


@pytest.fixture(scope="module")
def prepared(tiny_folder, tmp_path_factory):
    """Four clients, two budgets, learned rescaling, two rounds of two steps."""
    path = said_rows(tmp_path_factory.mktemp("data"))
    experiment = Experiment(
        seed=3,
        rounds=2,
        model=ModelSettings(path=str(tiny_folder)),
        adapter=LoRA(rank=2),
        rescaling=LearnedRescaling(),
        data=LocalFiles(path=str(path)),
        partition=Iid(num_clients=4),
        budget=Levels(tiers={"high": Tier(top_k=4), "low": Tier(top_k=1)}),
        training=Training(steps=2, batch_size=3, probe_examples=3),
    )
    return prepare(experiment)


@pytest.fixture(scope="module")
def undisturbed(prepared):
    """The result of the plain loop, in this process."""
    return fingerprint(run(prepared, InProcess(prepared.server, prepared.scorer)))


@pytest.fixture
def make_workers(prepared, tmp_path):
    """A function that makes a pool, of clients that kill if asked; all is gone in the end."""
    pools = []

    def make(workers=2, **killers):
        (tmp_path / "marks").mkdir(exist_ok=True)
        run = prepared
        if killers:
            values = {f.name: getattr(prepared.client, f.name) for f in fields(ClientSide)}
            client = Deadly(**values, folder=tmp_path / "marks", **killers)
            run = replace(prepared, scorer=replace(prepared.scorer, client=client))
        told = Told()
        folder = tmp_path / "waiting"
        pools.append(
            Pool(
                run.server,
                run.scorer,
                workers,
                work=expected_work(run.server),
                folder=folder,
                watches=[told],
            )
        )
        return pools[-1], told

    yield make
    for pool in pools:
        pool.close()
    assert multiprocessing.active_children() == []
    assert not list(tmp_path.glob("waiting/*"))


def run(prepared, transport):
    return run_over(prepared, transport, num_rounds=2, clients_per_round=4)


def fingerprint(state):
    return state.adapter.digest(), {tier: r.tolist() for tier, r in state.rescalers.items()}


def first_tasks(prepared):
    return plan_round(prepared.server.first_state(), prepared.server.members, 4, 0)


def pids(pool):
    return [worker.process.pid for worker in pool.force.workers]


def test_a_worker_killed_in_the_middle_of_its_client_is_replaced(
    prepared, undisturbed, make_workers, tmp_path
):
    pool, told = make_workers(once=frozenset({0, 2}))
    assert fingerprint(run(prepared, pool)) == undisturbed
    killed = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "marks").iterdir())
    assert killed == ["1-0", "1-2", "2-0", "2-2"]
    assert [(e.ended_by, e.deaths) for e in told.replacements] == [("SIGKILL", 1)] * 4
    assert {e.job for e in told.replacements} == {
        f"client {client} of round {number}" for client in (0, 2) for number in (1, 2)
    }
    assert not {event.pid for event in told.replacements} & set(pids(pool))


def test_what_a_killed_process_left_waiting_is_removed(make_workers, tmp_path):
    """Also of one that nobody has waited for."""
    child = subprocess.Popen(["sleep", "600"])
    mine, another = (tmp_path / "waiting" / f"{WAITING}{pid}-a" for pid in (os.getpid(), child.pid))
    for folder in (mine, another):
        folder.mkdir(parents=True)
    try:
        make_workers()
        assert another.exists()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in /proc
        make_workers()
        assert (mine.exists(), another.exists()) == (True, False)
    finally:
        child.kill()
        child.wait()
    mine.rmdir()


def test_a_client_that_always_kills_its_worker_fails_and_the_round_goes_on(prepared, make_workers):
    pool, told = make_workers(always=frozenset({1}))
    tasks = first_tasks(prepared)
    answers = list(pool(tasks))
    assert [type(a) for a in answers] == [Update, Failure, Update, Update]
    assert answers[1] == Failure(1, 1, "it ended its worker 3 times, the last by SIGKILL")
    assert [e.deaths for e in told.replacements] == [1, 2, 3]
    others = [t for t in tasks if t.client != 1]
    state, strategy = prepared.server.first_state(), prepared.setup.experiment.aggregation
    updates = [a for a in answers if isinstance(a, Update)]
    alone = finish_round(state, strategy, InProcess(prepared.server, prepared.scorer)(others))
    assert fingerprint(finish_round(state, strategy, iter(updates))) == fingerprint(alone)
    assert not list(pool.folder.path.iterdir())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bits(prepared, undisturbed, make_workers, workers):
    pool, told = make_workers(workers)
    assert fingerprint(run(prepared, pool)) == undisturbed
    assert told.replacements == []
    for number, schedule in enumerate(told.schedules, start=1):
        assert (schedule.round, schedule.workers) == (number, workers)
        assert 0 < schedule.longest_seconds <= schedule.busy_seconds
        assert schedule.makespan_seconds >= schedule.ideal_seconds


def test_any_order_of_execution_gives_the_same_bits(prepared, undisturbed, make_workers):
    pool, _ = make_workers(2)

    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, 9), min_size=4, max_size=4))
    def same(seconds):
        pool.times.expected = lambda client, _: seconds[client]
        assert fingerprint(run(prepared, pool)) == undisturbed

    same()


def test_the_time_model_learns_from_rounds_and_the_longest_client_is_first(
    prepared, make_workers, monkeypatch
):
    pool, _ = make_workers(1)
    run(prepared, pool)
    assert [pool.times.clients[client][0] for client in range(4)] == [2, 2, 2, 2]
    tasks = first_tasks(prepared)
    pool.times.expected = lambda client, _: [3.0, 9.0, 1.0, 9.0][client]
    jobs, carry_out = [], pool.force.carry_out

    def seen(given):
        jobs.extend(given)
        return carry_out(iter(jobs))

    monkeypatch.setattr(pool.force, "carry_out", seen)
    assert [answer.client for answer in pool(tasks)] == [0, 1, 2, 3]
    assert [job.number for job in jobs] == [1, 3, 0, 2]
    assert [order.values["client"] for job in jobs for order in job.argument] == [1, 3, 0, 2]
    assert len({order.adapter for job in jobs for order in job.argument}) == 1


def test_a_round_left_early_leaves_no_job_and_no_file(prepared, make_workers):
    pool, _ = make_workers(2)
    answers = pool(first_tasks(prepared))
    first = next(answers)
    answers.close()
    assert not list(pool.folder.path.iterdir())
    again = list(pool(first_tasks(prepared)))
    assert [a.client for a in again] == [0, 1, 2, 3]
    assert torch.equal(again[0].delta.flat, first.delta.flat)

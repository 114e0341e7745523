"""The benchmarks' idle clients pass through the round loop as any others; how figures are taken."""

import time

import numpy as np
import pytest

from fedmoe.runs.local.in_process import InProcess
from simulations.benchmarks.idle import idle_run, one_round
from simulations.benchmarks.measure import Options, in_turns, ratio
from simulations.benchmarks.memory import Peak, array_bytes


@pytest.mark.parametrize(("requested", "taken"), [(None, 5), (2, 2)])
def test_a_round_of_idle_clients(requested, taken):
    run, trained = idle_run(5, width=2), []

    class Watched(InProcess):
        def __call__(self, tasks):
            trained.extend(task.client for task in tasks)
            return super().__call__(tasks)

    after = one_round(run, Watched(run.server, run.scorer), requested)
    assert after.round == 1
    assert len(set(trained)) == taken
    assert after.adapter.digest() == run.setup.initial.digest()


def test_one_thread_is_timed_by_what_it_computes():
    clocks = [Options(threads=n).clock.__name__ for n in (1, 2)]
    assert clocks == ["thread_time", "perf_counter"]


def test_steps_take_turns_and_the_first_is_a_warm_up():
    done = []
    seconds = in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert done == ["a", "b"] * 3
    assert [len(taken) for taken in seconds.values()] == [2, 2]
    assert ratio([3.0, 4.0, 90.0], [1.0, 2.0, 1.0]) == 3.0


def test_memory_is_that_of_the_moment_of_most():
    assert array_bytes(lambda: np.ones(2**20)) == pytest.approx(2**23, rel=0.01)
    with Peak() as peak:
        held = np.ones(2**24)
        time.sleep(0.5)
        del held
    assert 2**26 < peak.bytes - peak.before < 2**29

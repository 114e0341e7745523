"""The benchmark's clients that do nothing go through the round loop as any others."""

import numpy as np
import pytest

from fedmoe.runs.local.in_process import InProcess
from simulations.benchmarks.measure import Options
from simulations.benchmarks.scaling import Curve, plot
from simulations.benchmarks.simulation import one_round, still_run, still_state


@pytest.mark.parametrize(("asked", "taken"), [(None, 5), (2, 2)])
def test_a_round_of_clients_that_do_nothing(asked, taken):
    run, trained = still_run(5, width=2), []

    class Watched(InProcess):
        def __call__(self, tasks):
            trained.extend(task.client for task in tasks)
            return super().__call__(tasks)

    after = one_round(run, still_state(run), Watched(run), asked)
    assert after.round == 1
    assert len(set(trained)) == taken
    assert after.adapter.digest() == run.initial.digest()


def test_curves_are_drawn(tmp_path):
    curves = {
        name: Curve(step, (1, 4, 16), list(np.array([1.0, 2.0, 3.0])), [2**20, 2**21, 2**22])
        for name, step in (("tokens", "layer step"), ("clients", "round"))
    }
    plot(curves, tmp_path)
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_one_thread_is_timed_by_what_it_computes():
    clocks = [Options(threads=n).clock.__name__ for n in (1, 2)]
    assert clocks == ["thread_time", "perf_counter"]

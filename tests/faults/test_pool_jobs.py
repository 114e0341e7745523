"""Jobs of a pool that die, hang or raise: they are done again, or fail and say why."""

import math
import multiprocessing
import os
import signal
import sys
import time
from typing import Any, cast

import pytest
from test_pool import Told

from fedmoe.errors import FedMoEError
from fedmoe.runs.local.pool import Pool

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked"),
    # Python 3.12 and later warn of every fork in a process with threads; torch's are idle here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture
def pool_of(tmp_path):
    """A function that makes a pool of two workers for jobs that need no run, and its watch."""
    pools = []

    def make(workers=2, told=None, **settings):
        told = told or Told()
        watches = [cast(Any, told)]
        none = cast(Any, None)
        pools.append(Pool(none, none, workers, folder=tmp_path, watches=watches, **settings))
        return pools[-1], told

    yield make
    for pool in pools:
        pool.close()
    assert multiprocessing.active_children() == []


def die_once(_, mark):
    if not mark.exists():
        mark.touch()
        os._exit(3)
    return mark.name


def die(_, code):
    os._exit(code)


def hang_until(_, mark):
    if not mark.exists():
        signal.pause()
    return mark.name


def hang(_, __):
    signal.pause()


def refuse(_, number):
    if number == 1:
        raise FedMoEError("not this one")
    return number


def nap_then(_, number):
    return number


def later_when_earlier(_, number):
    time.sleep(0.05 * (3 - number))
    return number


def test_results_come_in_the_order_of_jobs(pool_of):
    pool, _ = pool_of()
    assert list(pool.map(later_when_earlier, range(4))) == [0, 1, 2, 3]


def test_a_mapped_job_is_done_again_too(pool_of, tmp_path):
    pool, told = pool_of()
    marks = [tmp_path / name for name in "abc"]
    assert list(pool.map(die_once, marks)) == ["a", "b", "c"]
    assert {(e.job, e.ended_by) for e in told.replacements} == {
        (f"die_once {n}", "exit code 3") for n in range(3)
    }
    with pytest.raises(FedMoEError, match=r"die: it ended its worker 3 times, .* exit code 7"):
        list(pool.map(die, [7]))


def test_a_worker_that_hangs_is_killed_and_its_job_done_again(pool_of, tmp_path):
    mark = tmp_path / "mark"

    class Relenting(Told):
        """From the first that was killed on, jobs have all the time they need."""

        def replaced(self, event):
            super().replaced(event)
            mark.touch()
            pool.force.job_seconds = math.inf

    pool, told = pool_of(told=Relenting(), job_seconds=0.2)
    assert list(pool.map(hang_until, [mark])) == ["mark"]
    (event,) = told.replacements
    assert (event.job, event.ended_by) == ("hang_until 0", "SIGKILL after 0.2 s")


def test_a_job_that_hangs_every_worker_fails(pool_of):
    pool, _ = pool_of(job_seconds=0.05)
    with pytest.raises(FedMoEError, match=r"3 times, the last by SIGKILL after 0.05 s"):
        list(pool.map(hang, [0]))


def test_what_a_job_raises_is_raised_in_its_turn(pool_of):
    pool, _ = pool_of()
    results = pool.map(refuse, range(3))
    assert next(results) == 0
    with pytest.raises(FedMoEError, match="not this one") as raised:
        next(results)
    assert "in refuse" in raised.value.__notes__[0]
    assert list(pool.map(refuse, [5])) == [5]


def test_workers_killed_on_purpose_are_no_jobs_fault(pool_of):
    pool, told = pool_of(1)
    for _ in range(4):  # one more than a job may cost
        results = pool.map(nap_then, range(2))
        pool.lose_worker()
        assert list(results) == [0, 1]
    pool.close()
    assert [event.deaths for event in told.replacements] == [0] * len(told.replacements)
    assert told.replacements

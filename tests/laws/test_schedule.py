"""Laws of the schedule: longest first is within Graham's bound, and the time model learns."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.runs.costs import expected_tokens
from fedmoe.runs.local.schedule import TimeModel, longest_first
from fedmoe.runs.workers import Schedule
from fedmoe.training.settings import Training

SECONDS = st.lists(st.integers(1, 20), min_size=1, max_size=7)


def makespan(seconds, order, workers):
    """When the last job ends: each free worker takes the next job of the order."""
    ends = [0] * workers
    for job in order:
        first = ends.index(min(ends))
        ends[first] += seconds[job]
    return max(ends)


def best_makespan(seconds, workers):
    """By trying every way to share the jobs out."""
    return min(
        max(
            sum(s for s, w in zip(seconds, owners, strict=True) if w == worker)
            for worker in range(workers)
        )
        for owners in product(range(workers), repeat=len(seconds))
    )


@given(SECONDS, st.integers(1, 3))
def test_longest_first_is_within_a_third_of_the_best(seconds, workers):
    order = longest_first(seconds)
    assert sorted(order) == list(range(len(seconds)))
    bound = (4 / 3 - 1 / (3 * workers)) * best_makespan(seconds, workers)
    assert makespan(seconds, order, workers) <= bound + 1e-9


def test_equal_jobs_keep_their_order():
    assert longest_first([2.0, 5.0, 2.0, 5.0]) == [1, 3, 0, 2]


@given(SECONDS, st.integers(1, 4))
def test_no_schedule_beats_the_ideal(seconds, workers):
    done = makespan(seconds, longest_first(seconds), workers)
    ideal = Schedule(1, workers, sum(seconds), max(seconds), done).ideal_seconds
    assert ideal <= done


def test_before_anything_is_known_more_work_takes_longer():
    model = TimeModel()
    assert model.expected(0, 1e12) < model.expected(1, 3e12)


@given(st.floats(1e-12, 1e-9), st.lists(st.integers(1, 50), min_size=1))
def test_new_clients_are_expected_to_take_as_long_per_flop_as_the_others(pace, sizes):
    model = TimeModel()
    for client, size in enumerate(sizes):
        model.learn(client, size * 1e9, pace * size * 1e9)
    assert model.expected(-1, 60e9) == pytest.approx(pace * 60e9)


def test_a_client_seen_before_takes_its_own_mean():
    model = TimeModel()
    for seconds in (1.0, 2.0, 6.0):
        model.learn(7, 1e9, seconds)
    model.learn(8, 2e9, 50.0)
    assert model.expected(7, 1e9) == pytest.approx(3.0)
    assert model.expected(9, 1e9) != pytest.approx(3.0)


def test_expected_tokens_are_those_of_the_batches_and_the_probes():
    lengths = [10] * 5
    training = Training(steps=6, batch_size=4, accumulation=2, probe_examples=3)
    # Epochs of one batch of 4 and one of 1: 12 micro-batches of 2.5 rows on average.
    assert expected_tokens(lengths, training) == (12 * 2.5 * 10, 2 * 3 * 10)
    assert expected_tokens([], training) == (0, 0)

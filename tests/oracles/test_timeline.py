"""Asynchronous arrivals against a clock that ticks, and what holds for any of them."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.devices.timeline import Finish, Timeline, Virtual
from fedmoe.seeds import numpy_rng

fleets = st.tuples(
    st.lists(st.integers(1, 6), min_size=1, max_size=7),  # whole seconds of each client
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 2**40),
)


def timeline(choose, duration, *, concurrency, buffer_size, num_updates):
    """The arrivals of a run in virtual time."""
    made = Timeline(choose, Virtual(duration), concurrency=concurrency, buffer_size=buffer_size)
    for _ in range(num_updates):
        yield from made.step()


def any_idle(seed, num_clients):
    """Draw evenly among the clients that are not at work, from `(seed, number)`."""

    def choose(number, at_work):
        idle = [client for client in range(num_clients) if client not in at_work]
        return idle[numpy_rng(seed, "job", number).integers(len(idle))]

    return choose


def slow_timeline(seconds, choose, concurrency, buffer_size, num_updates):
    """One second after another: who is done, in the order of starts, makes place for the next."""
    arrivals, versions, running, started, buffer = [], 0, [], 0, []

    def start(now):
        nonlocal started
        client = choose(started, frozenset(r["client"] for r in running))
        left = seconds[client]
        running.append({"client": client, "left": left, "version": versions, "start": now})
        started += 1

    for _ in range(concurrency):
        start(0)
    now = 0
    while versions < num_updates:
        now += 1
        for job in running:
            job["left"] -= 1
        while (done := [job for job in running if job["left"] == 0]) and versions < num_updates:
            job = done[0]
            running.remove(job)
            stale = versions - job["version"]
            buffer.append(job)
            full = len(buffer) == buffer_size
            arrivals.append((job["client"], job["start"], now, stale, full))
            if full:
                versions += 1
                buffer.clear()
            start(now)
    return arrivals


def arrivals_of(fleet, num_updates=5):
    seconds, concurrency, buffer_size, seed = fleet
    concurrency = min(concurrency, len(seconds))
    choose = any_idle(seed, len(seconds))
    sizes = {"concurrency": concurrency, "buffer_size": buffer_size, "num_updates": num_updates}
    fast = [*timeline(choose, lambda job: float(seconds[job.client]), **sizes)]
    return fast, slow_timeline(seconds, choose, concurrency, buffer_size, num_updates)


@given(fleets)
def test_arrivals_are_those_of_the_ticking_clock(fleet):
    fast, slow = arrivals_of(fleet)
    assert [
        (a.job.client, a.job.start_seconds, a.finish_seconds, a.staleness, a.fills_buffer)
        for a in fast
    ] == slow


@given(fleets)
def test_every_buffer_is_of_its_size_and_nobody_works_twice_at_once(fleet):
    fast, _ = arrivals_of(fleet)
    assert len(fast) == 5 * fleet[2]
    assert [a.fills_buffer for a in fast] == [(i + 1) % fleet[2] == 0 for i in range(len(fast))]
    assert all(a.finish_seconds <= b.finish_seconds for a, b in pairwise(fast))
    spans = sorted((a.job.client, a.job.start_seconds, a.finish_seconds) for a in fast)
    assert all(x[0] != y[0] or x[2] <= y[1] for x, y in pairwise(spans))


class Chance:
    """A clock on which any job may end next, fail, or keep the server waiting."""

    def __init__(self, draw):
        self.draw, self.jobs = draw, []

    def reachable(self, client):
        return True

    def start(self, job):
        self.jobs.append(job)

    def next(self):
        place, counts = self.draw(st.integers(-1, len(self.jobs) - 1)), self.draw(st.booleans())
        return None if place < 0 else Finish(0.0, self.jobs.pop(place), counts)

    def wait(self):
        return False


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_failures_take_no_place_and_a_step_ends_where_nobody_is_left(data, clients, most, size):
    arrived = set()

    def choose(number, at_work):
        free = [c for c in range(clients) if c not in at_work | arrived]
        return free[number % len(free)] if free else None

    made = Timeline(choose, Chance(data.draw), concurrency=most, buffer_size=size)
    for version in range(4):
        arrived.clear()
        arrivals = made.step(lambda a: arrived.add(a.job.client))
        counted = sum(a.counts for a in arrivals)
        assert counted == size or (counted < size and len(arrived) == clients)
        assert [a.fills_buffer for a in arrivals[:-1]] == [False] * (len(arrivals) - 1)
        assert arrivals[-1].fills_buffer == (counted == size)
        assert all(a.staleness == version - a.job.version >= 0 for a in arrivals)
        assert len({a.job.client for a in arrivals}) == len(arrivals)
        assert len(made.at_work) <= most


@given(fleets, st.integers(0, 4))
def test_a_timeline_that_is_resumed_anywhere_goes_on_as_it_would_have(fleet, steps):
    seconds, concurrency, buffer_size, seed = fleet

    def made():
        clock = Virtual(lambda job: float(seconds[job.client]))
        most = min(concurrency, len(seconds))
        choose = any_idle(seed, len(seconds))
        return Timeline(choose, clock, concurrency=most, buffer_size=buffer_size)

    whole, again = made(), made()
    for _ in range(steps):
        whole.step()
    again.resume(steps, **json.loads(json.dumps(whole.position())))
    assert [again.step(), again.step()] == [whole.step(), whole.step()]


def test_one_client_at_a_time_is_never_stale():
    jobs = timeline(any_idle(0, 3), lambda _: 2.0, concurrency=1, buffer_size=1, num_updates=4)
    assert [(a.finish_seconds, a.staleness) for a in jobs] == [(2, 0), (4, 0), (6, 0), (8, 0)]


def test_a_fast_client_does_not_wait_for_a_slow_one():
    """By hand: client 1 takes 10 s, client 0 takes 3; one update makes a version."""
    seconds = [3.0, 10.0]
    jobs = timeline(
        lambda number, _: 1 if number == 1 else 0,
        lambda job: seconds[job.client],
        concurrency=2,
        buffer_size=1,
        num_updates=4,
    )
    assert [(a.job.client, a.finish_seconds, a.staleness) for a in jobs] == [
        (0, 3, 0),
        (0, 6, 0),
        (0, 9, 0),
        (1, 10, 3),
    ]


def test_the_server_may_update_before_the_next_job_starts():
    log = []
    jobs = timeline(
        any_idle(1, 4),
        lambda job: log.append(f"start at {job.version}") or 1.0,
        concurrency=2,
        buffer_size=1,
        num_updates=2,
    )
    for _ in jobs:
        log.append("update")
    assert log == ["start at 0", "start at 0", "update", "start at 1", "update"]


def test_idle_clients_are_drawn_evenly():
    choose = any_idle(5, 4)
    seen = Counter(choose(number, frozenset({2})) for number in range(3000))
    assert set(seen) == {0, 1, 3}
    assert list(seen.values()) == pytest.approx([1000] * 3, abs=104)  # four standard deviations

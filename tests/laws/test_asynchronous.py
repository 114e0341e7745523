"""Laws of buffered asynchrony: nobody counts twice, nothing is kept that nobody needs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import FedAvg, FedBuff, Flame
from fedmoe.devices.timeline import Virtual
from fedmoe.messages.records import Update
from fedmoe.rounds import Member, ServerState, whole_state
from fedmoe.runs.asynchronous import Buffered

LAYOUT = Layout.of([("q.A", (1, 2), None), ("q.B", (2, 1), None)], 1, 1, 1, 1.0)


def state(version):
    adapter = Adapter(LAYOUT, torch.full((LAYOUT.size,), float(version)))
    memory = {"v": torch.zeros(LAYOUT.size)}
    return ServerState(version, adapter, {"t": torch.ones(1)}, memory)


def planner(seconds, concurrency, buffer_size, seed=0, availability=1.0):
    members = [Member(c, "t", 1, availability) for c in range(len(seconds))]
    return Buffered(
        members,
        whole_state,
        lambda _: Virtual(lambda job: seconds[job.client]),
        concurrency=concurrency,
        buffer_size=buffer_size,
        seed=seed,
    )


fleets = st.lists(st.integers(1, 50), min_size=2, max_size=8).flatmap(
    lambda s: st.tuples(
        st.just([float(x) for x in s]), st.integers(1, len(s)), st.integers(1, len(s))
    )
)


@given(fleets, st.integers(0, 5))
def test_a_client_counts_once_in_a_step_and_no_task_is_given_twice(fleet, seed):
    seconds, concurrency, buffer_size = fleet
    plan = planner(seconds, concurrency, buffer_size, seed)
    given_out, clock = [], 0.0
    for version in range(6):
        tasks = plan.plan(state(version))
        clients = [t.client for t in tasks]
        assert clients == sorted(set(clients))
        assert len(clients) == buffer_size
        assert clock <= plan.clock
        clock = plan.clock
        for task in tasks:
            assert 1 <= task.round <= version + 1
            # It starts from what the server had when the client began.
            assert task.adapter.flat.eq(task.round - 1).all()
        given_out += [(t.round, t.client) for t in tasks]
        needed = {job.version for job in plan.timeline.at_work} | {version}
        assert set(plan.states) == needed
        assert not any(kept.memory for kept in plan.states.values())
    assert len(given_out) == len(set(given_out))


def test_the_same_fleet_gives_the_same_plan_and_another_seed_another():
    def plans(seed):
        plan = planner([1.0, 2, 4, 8, 16, 3], 3, 2, seed)
        return [[(t.round, t.client) for t in plan.plan(state(v))] for v in range(5)]

    assert plans(1) == plans(1)
    assert plans(1) != plans(2)


def test_with_everyone_at_work_and_a_buffer_for_all_it_goes_by_rounds():
    plan = planner([1.0, 5, 10, 20], 4, 4)
    for version in range(3):
        tasks = plan.plan(state(version))
        assert [(t.round, t.client) for t in tasks] == [(version + 1, c) for c in range(4)]
        assert plan.clock == 20 * (version + 1)


def test_slow_clients_are_stale_and_rarely_reachable_ones_rarely_asked():
    plan = planner([1.0, 1, 1, 30], 4, 1)
    ages = {0: 0, 3: 0}
    for version in range(120):
        for task in plan.plan(state(version)):
            ages[task.client] = max(ages.get(task.client, 0), version + 1 - task.round)
    assert ages[3] >= 10
    assert ages[0] <= 3
    plan = planner([1.0] * 6, 2, 1)
    plan.members = [replace(m, availability=0.05 if m.client < 3 else 1.0) for m in plan.members]
    asked = [t.client for v in range(60) for t in plan.plan(state(v))]
    assert sum(c < 3 for c in asked) < 15


@pytest.mark.parametrize(("staleness", "share"), [(0, 1.0), (3, 0.5)])
def test_a_late_update_counts_less(staleness, share):
    delta = Adapter(LAYOUT, torch.ones(LAYOUT.size))
    update = Update(
        1,
        0,
        "t",
        1,
        torch.ones(1),
        delta,
        torch.ones(1, 1).long(),
        examples=2,
        tokens=1,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=0.1,
        peak_bytes=0,
    )
    aged = FedBuff().discount(update, staleness)
    assert aged.delta.flat.eq(share).all()
    assert FedBuff(exponent=0).discount(update, staleness) is update


def test_a_client_that_sits_out_is_never_asked():
    plan = planner([1.0, 2.0, 3.0], 3, 2)
    plan.members[1] = replace(plan.members[1], availability=0.0)
    asked = {t.client for v in range(4) for t in plan.plan(state(v))}
    assert asked == {0, 2}


def test_a_buffer_may_weigh_experts_as_flame_does():
    two = Layout.of([("experts.A", (2, 1, 2), 0), ("experts.B", (2, 2, 1), 0)], 1, 2, 1, 1.0)
    zero, counts = Adapter(two, torch.zeros(two.size)), ([9, 1], [2, 8])
    updates = [
        Update(
            1,
            client,
            "t",
            1,
            torch.ones(1),
            Adapter(two, torch.full((two.size,), float(client + 1))),
            torch.tensor([used]),
            examples=3 + client,
            tokens=10,
            steps=1,
            loss_before=1.0,
            loss_after=1.0,
            seconds=0.1,
            peak_bytes=0,
        )
        for client, used in enumerate(counts)
    ]
    buffered = FedBuff(temperature=2.0).combine(zero, updates).flat
    assert buffered.equal(Flame(temperature=2.0).combine(zero, updates).flat)
    assert FedBuff().combine(zero, updates).flat.equal(FedAvg().combine(zero, updates).flat)
    assert not buffered.equal(FedBuff().combine(zero, updates).flat)

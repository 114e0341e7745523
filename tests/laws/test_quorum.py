"""Laws of the quorum: a round of enough updates has the bits that it has without one."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.config import Experiment
from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure, Update
from fedmoe.rounds import Member, ServerState, check_quorum, run_rounds

LAYOUT = Layout.of([("a.A", (2, 3), 0), ("q.A", (4,), None)], 1, 2, 1, 1.0)
MEMBERS = [Member(client, "t", 1) for client in range(7)]


def update_for(task):
    generator = torch.Generator().manual_seed(100 * task.round + task.client)
    delta = Adapter(LAYOUT, torch.randn(LAYOUT.size, generator=generator))
    return Update(
        round=task.round,
        client=task.client,
        tier="t",
        top_k=1,
        rescaler=task.rescaler,
        delta=delta,
        counts=torch.tensor([[4, 6]]),
        examples=1,
        tokens=10,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=1.0,
        peak_bytes=1,
    )


class Listener:
    """An observer that counts the rounds that were finished."""

    def __init__(self):
        self.rounds = 0

    def planned(self, tasks): ...
    def answered(self, task, answer): ...

    def finished(self, state):
        self.rounds = state.round


def run(failing, quorum, listener=None, rounds=2):
    """All rounds, of which the second lacks the failing clients."""

    def transport(tasks):
        for task in tasks:
            bad = task.round == 2 and task.client in failing
            failure = Failure(task.round, task.client, f"tired {task.client}")
            yield failure if bad else update_for(task)

    state = ServerState(0, Adapter(LAYOUT, torch.zeros(LAYOUT.size)), {"t": torch.ones(1)})
    return run_rounds(
        state,
        MEMBERS,
        Flame(),
        transport,
        [listener] if listener else [],
        num_rounds=rounds,
        clients_per_round=7,
        seed=0,
        quorum=quorum,
    )


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 6), max_size=6), st.integers(0, 20))
def test_a_round_counts_if_a_share_of_its_clients_answered_and_with_the_same_bits(failing, number):
    quorum, listener = number / 20, Listener()
    if 7 - len(failing) >= math.ceil(Fraction(number, 20) * 7):
        assert run(failing, quorum, listener).adapter.digest() == run(failing, 0).adapter.digest()
        assert listener.rounds == 2
        return
    with pytest.raises(FedMoEError, match=f"round 2: {7 - len(failing)} of 7 clients sent"):
        run(failing, quorum, listener)
    assert listener.rounds == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(0, 100))
def test_the_least_is_the_share_rounded_up_whatever_floats_make_of_it(num_tasks, percent):
    least = math.ceil(Fraction(percent, 100) * num_tasks)
    failures = [Failure(1, c, "tired") for c in range(num_tasks)]
    check_quorum(1, num_tasks, failures[least:], percent / 100)
    if least:
        with pytest.raises(FedMoEError, match=f"needs {least}\\. Round discarded"):
            check_quorum(1, num_tasks, failures[: num_tasks - least + 1], percent / 100)


def test_a_round_without_tasks_has_its_quorum():
    check_quorum(1, 0, [], 1.0)


def test_the_refusal_names_the_first_reason_and_a_way_on():
    with pytest.raises(FedMoEError, match=r"Resume with .* lower `quorum`\. .*: tired 3$"):
        run({3, 5}, 1.0)


@pytest.mark.parametrize("quorum", [-0.1, 1.1])
def test_a_quorum_is_a_share(quorum):
    with pytest.raises(ValueError, match="quorum"):
        Experiment(quorum=quorum)

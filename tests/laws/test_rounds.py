"""Laws of the round loop: who takes part, who fails, and the same bits on every path."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from said_rows import said_rows
from sides import run_over

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.aggregation.robust import Clip
from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.data.examples import Example
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.data.text import TextSettings
from fedmoe.errors import DataError, FedMoEError
from fedmoe.messages.records import Failure, Update
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings, load_base
from fedmoe.models.rescaling import LearnedRescaling
from fedmoe.rounds import Member, ServerState, finish_round, plan_round, run_rounds
from fedmoe.runs.evaluation_sets import evaluation_sets
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

LAYOUT = Layout.of([("a.A", (2, 3), 0), ("q.A", (4,), None)], 1, 2, 1, 1.0)
MEMBERS = [Member(client, "low" if client % 2 else "high", 1 + client % 2) for client in range(9)]


def first_state():
    rescalers = {"low": torch.ones(1), "high": torch.ones(1)}
    return ServerState(0, Adapter(LAYOUT, torch.zeros(LAYOUT.size)), rescalers)


def update_for(task, **changes):
    """An answer whose values depend on the round and the client alone."""
    generator = torch.Generator().manual_seed(100 * task.round + task.client)
    delta = Adapter(LAYOUT, torch.randn(LAYOUT.size, generator=generator))
    counts = torch.tensor([[5, 7 - 2 * (task.top_k == 1)]])
    fields = {
        "round": task.round,
        "client": task.client,
        "tier": task.tier,
        "top_k": task.top_k,
        "rescaler": task.rescaler + task.client,
        "delta": delta,
        "counts": counts,
        "examples": 1 + task.client,
        "tokens": 10,
        "steps": 1,
        "loss_before": 1.0,
        "loss_after": 1.0,
        "seconds": 1.0,
        "peak_bytes": 1,
    }
    return Update(**(fields | changes))


class Listener:
    """An observer that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def planned(self, tasks):
        self.heard.append(("planned", [task.client for task in tasks]))

    def answered(self, task, answer):
        self.heard.append(("answered", task.client, type(answer).__name__))

    def finished(self, state):
        self.heard.append(("finished", state.round))


def loop(transport, *, num_rounds=2, clients_per_round=4, seed=0, state=None, observers=()):
    return run_rounds(
        state or first_state(),
        MEMBERS,
        Flame(),
        transport,
        observers,
        num_rounds=num_rounds,
        clients_per_round=clients_per_round,
        seed=seed,
    )


@given(st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 12), st.randoms())
def test_who_takes_part_depends_on_the_seed_and_the_round_alone(seed, number, count, random):
    state = replace(first_state(), round=number)
    tasks = plan_round(state, MEMBERS, count, seed)
    random.random()
    torch.rand(1)
    moved = replace(state, adapter=state.adapter + Adapter(LAYOUT, torch.ones(LAYOUT.size)))
    clients = [task.client for task in tasks]
    assert clients == [t.client for t in plan_round(moved, MEMBERS, count, seed)]
    assert clients == sorted(set(clients))
    assert len(clients) == min(count, len(MEMBERS))
    for task in tasks:
        member = MEMBERS[task.client]
        assert (task.round, task.tier, task.top_k) == (number + 1, member.tier, member.top_k)


def test_rounds_and_seeds_draw_unlike_clients_and_every_client_has_its_turn():
    def draw(seed, number):
        tasks = plan_round(replace(first_state(), round=number), MEMBERS, 3, seed)
        return tuple(task.client for task in tasks)

    by_round = [draw(0, number) for number in range(40)]
    assert len(set(by_round)) > 20
    assert by_round != [draw(1, number) for number in range(40)]
    assert {client for clients in by_round for client in clients} == set(range(9))


@settings(max_examples=20)
@given(st.sets(st.integers(0, 8), max_size=8), st.integers(0, 99))
def test_a_client_that_fails_is_as_one_never_asked(failing, seed):
    def some_fail(tasks):
        for task in tasks:
            bad = task.client in failing
            yield Failure(task.round, task.client, "tired") if bad else update_for(task)

    listener = Listener()
    ended = loop(some_fail, num_rounds=1, clients_per_round=9, seed=seed, observers=[listener])
    tasks = plan_round(first_state(), MEMBERS, 9, seed)
    answers = [update_for(task) for task in tasks if task.client not in failing]
    alone = finish_round(first_state(), Flame(), answers)
    assert ended.adapter.digest() == alone.adapter.digest()
    assert all(torch.equal(r, alone.rescalers[tier]) for tier, r in ended.rescalers.items())
    answered = [h[1:] for h in listener.heard if h[0] == "answered"]
    assert answered == [(c, "Failure" if c in failing else "Update") for c in range(9)]


def test_a_round_in_which_all_failed_ends_the_run_with_the_first_reason():
    def from_round_two_all_fail(tasks):
        for task in tasks:
            bad = task.round == 2
            yield Failure(task.round, task.client, f"no {task.client}") if bad else update_for(task)

    listener = Listener()
    with pytest.raises(FedMoEError, match=r"every client failed\. The first reason: no \d"):
        loop(from_round_two_all_fail, num_rounds=3, observers=[listener])
    assert [h for h in listener.heard if h[0] == "finished"] == [("finished", 1)]


def test_a_finished_round_without_updates_keeps_the_adapter():
    state = first_state()
    ended = finish_round(state, Flame(), [])
    assert (ended.round, ended.adapter, ended.rescalers) == (1, state.adapter, state.rescalers)


def test_answers_out_of_order_are_our_mistake():
    def backwards(tasks):
        return (update_for(task) for task in reversed(tasks))

    with pytest.raises(AssertionError):
        loop(backwards)


def test_a_run_can_go_on_from_any_of_its_states():
    def transport(tasks):
        return (update_for(task) for task in tasks)

    whole = loop(transport, num_rounds=4)
    half = loop(transport, num_rounds=2)
    assert loop(transport, num_rounds=4, state=half).adapter.digest() == whole.adapter.digest()


def test_rescalers_are_averaged_within_a_tier_by_examples():
    answers = [update_for(task) for task in plan_round(first_state(), MEMBERS[:4], 4, 0)]
    mean = finish_round(first_state(), Flame(), answers).rescalers
    # The answers moved theirs by their client number; client c has 1 + c examples.
    assert mean["high"].item() == pytest.approx(1 + (0 * 1 + 2 * 3) / (1 + 3))
    assert mean["low"].item() == pytest.approx(1 + (1 * 2 + 3 * 4) / (2 + 4))
    only_low = finish_round(first_state(), Flame(), answers[1::2]).rescalers
    assert torch.equal(only_low["high"], first_state().rescalers["high"])


def test_a_claim_of_size_moves_rescalers_no_further_than_the_adapter():
    answers = [update_for(task) for task in plan_round(first_state(), MEMBERS, len(MEMBERS), 0)]
    answers = [replace(a, tier="high", examples=2) for a in answers]
    lie = [replace(answers[0], rescaler=torch.tensor([0.0]), examples=10**6), *answers[1:]]
    honest = sum(a.rescaler.item() for a in answers[1:])
    n = len(answers)
    capped = finish_round(first_state(), Flame(), lie, robust=Clip()).rescalers["high"]
    assert capped.item() == pytest.approx(honest / (n + 1))  # the liar counts twice
    uniform = finish_round(first_state(), Flame(weighting="uniform"), lie).rescalers["high"]
    assert uniform.item() == pytest.approx(honest / n)


@pytest.fixture(scope="module")
def experiment(tiny_folder, tmp_path_factory):
    """Four clients, two budgets, learned rescaling, two rounds of two steps."""
    path = said_rows(tmp_path_factory.mktemp("data"))
    return Experiment(
        seed=3,
        rounds=2,
        clients_per_round=3,
        model=ModelSettings(path=str(tiny_folder)),
        adapter=LoRA(rank=2),
        rescaling=LearnedRescaling(),
        data=LocalFiles(path=str(path)),
        partition=Iid(num_clients=4),
        budget=Levels(tiers={"high": Tier(top_k=4), "low": Tier(top_k=1)}),
        training=Training(steps=2, batch_size=3, probe_examples=3),
    )


def run(prepared, transport):
    return run_over(prepared, transport, num_rounds=2, clients_per_round=3)


def fingerprint(state):
    return state.adapter.digest(), {tier: r.tolist() for tier, r in state.rescalers.items()}


def test_a_split_of_which_every_example_is_dropped_is_refused(experiment):
    text = TextSettings(max_length=8, too_long="drop")
    long = (Example("word " * 30, "ok", label=""),)
    tokenizer = load_base(experiment.model)[1]
    with pytest.raises(DataError, match=r"1 of 1 examples have more than text\.max_length = 8"):
        evaluation_sets(replace(experiment, text=text), long, long, tokenizer, "causal")


def test_a_run_has_the_same_bits_again(experiment):
    prepared = prepare(experiment)
    first = run(prepared, InProcess(prepared.server, prepared.scorer))
    assert first.adapter.flat.isfinite().all()
    assert first.adapter.digest() != prepared.server.first_state().adapter.digest()
    assert any(r.ne(1).any() for r in first.rescalers.values())
    anew = prepare(experiment)
    assert fingerprint(run(anew, InProcess(anew.server, anew.scorer))) == fingerprint(first)

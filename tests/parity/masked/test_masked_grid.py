"""Masked sums over the grid: the clear sum of whoever stays."""

import json
from dataclasses import replace

import pytest
import torch
from fake_grid import FakeGrid, client_of
from flwr.app import Error
from masked_rounds import BAD, PRIVATE, STEPS, UNIFORM, on_bad, played, step_of, tasks_of
from sides import changed

import clients.masks
from fedmoe.config.faults import parse_faults
from fedmoe.errors import AggregationError, FedMoEError
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.collector import Collector
from fedmoe.runs.hidden import sight_of
from fedmoe.runs.injection import Faulty
from fedmoe.runs.masked import Here
from server.private import ErrorCode
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")


def test_the_masked_adapter_is_the_clear_one_and_nothing_else_is_sent(prepared, clear):
    seen = []

    def look(request, reply):
        if step_of(request) == "mask":
            seen.append((reply["config"]["scalars"], [*reply["config"]], len(reply["arrays"])))
        return reply

    answers, state = played(prepared, look)
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)
    assert seen == [("{}", ["scalars", "checksum", "nonce"], 1)] * 5
    assert all(not answer.counts.any() and answer.withheld for answer in answers)


@pytest.mark.parametrize("step", STEPS)
def test_one_client_is_killed_at_a_step(prepared, clear, step):
    """Its node has lost its keys and is asked nothing more; nobody repeats what it was to do."""
    asked = []

    def look(request, reply):
        asked.append((client_of(request), step_of(request)))
        return on_bad(step, lambda _: Error(ErrorCode.CLIENT_APP_CRASHED, "killed"))(request, reply)

    answers, state = played(prepared, look)
    stayed = [answer.client for answer in answers if not isinstance(answer, Failure)]
    assert stayed == [c for c in range(5) if step == "reveal" or c != BAD]
    torch.testing.assert_close(state, clear(stayed), atol=1e-7, rtol=1e-6)
    ask = {s: asked.count((BAD, s)) for s in STEPS}
    # Before there are keys, a task is repeatable as ever.
    expected = {s: 3 if s == step == "advertise" else 1 for s in STEPS[: STEPS.index(step) + 1]}
    assert {s: n for s, n in ask.items() if n} == expected


@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_is_silent_at_a_step_holds_the_others_up_for_its_time_alone(
    prepared, clear, step, caplog
):
    grid = FakeGrid(
        *({"clients": str(c)} for c in range(5)),
        seconds=lambda r: 900.0 if client_of(r) == BAD and step_of(r) == step else 0.0,
    )
    answers, state = played(prepared, grid=grid, node_seconds=30.0, task_seconds=60.0)
    stayed = [answer.client for answer in answers if not isinstance(answer, Failure)]
    assert stayed == [c for c in range(5) if step == "reveal" or c != BAD]
    torch.testing.assert_close(state, clear(stayed), atol=1e-7, rtol=1e-6)
    assert grid.clock.now < 100
    said = caplog.text if step == "reveal" else answers[BAD].reason
    assert "no answer within" in said
    assert ("raise node_seconds" in said) == (step != "mask")


def test_a_node_that_leaves_in_the_middle_holds_nobody_up(prepared, clear):
    grid = FakeGrid(*[{"clients": str(c)} for c in range(5)])

    def leave(request, reply):
        if step_of(request) == "share" and client_of(request) == BAD:
            del grid.configs[100 + BAD]
            grid.clock.now += 3  # long enough to look who is there
        return reply

    grid.spoil = leave
    answers, state = played(prepared, grid=grid)
    assert "which alone has its keys for this round, has left" in answers[BAD].reason
    torch.testing.assert_close(state, clear({0, 1, 3, 4}), atol=1e-7, rtol=1e-6)
    assert grid.clock.now < 10


def test_a_node_that_was_restarted_has_no_keys(prepared, clear, monkeypatch):
    def forget(request, reply):
        if step_of(request) == "share" and client_of(request) == BAD:
            parties = clients.masks.parties_of
            monkeypatch.setattr(clients.masks, "parties_of", lambda *a: without(parties(*a)))
        return reply

    def without(parties):
        parties.parties.pop(BAD, None)
        return parties

    answers, state = played(prepared, forget)
    assert "client 2 has no keys for this step" in answers[BAD].reason
    torch.testing.assert_close(state, clear({0, 1, 3, 4}), atol=1e-7, rtol=1e-6)


def test_two_that_leave_are_too_many_and_the_reason_is_said(prepared):
    def spoil(request, reply):
        late = client_of(request) in (1, BAD) and step_of(request) == "reveal"
        return Error(2, "the cable was cut") if late else reply

    with pytest.raises(AggregationError, match=r"round 1: 2 of 3 shares.*cable was cut.*--resume"):
        played(prepared, spoil)

    def early(request, reply):
        return reply if client_of(request) in (None, 0, 1) else Error(2, "no power")

    with pytest.raises(FedMoEError, match=r"2 of 5 clients take part.*no power"):
        played(prepared, early)


def test_a_round_that_is_done_again_has_other_keys(prepared, clear):
    seen = []

    def spoil(request, reply):
        seen.append((step_of(request), reply["config"].get("scalars", "")))
        late = client_of(request) in (1, BAD) and step_of(request) == "reveal" and not again
        return Error(2, "the cable was cut") if late else reply

    again = False
    with pytest.raises(AggregationError):
        played(prepared, spoil)
    again = True
    _, state = played(prepared, spoil)
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)
    keys = [json.loads(text)["masking"] for step, text in seen if step == "advertise"]
    assert len({*keys}) == 10


def test_injected_faults_strike_masked_clients(prepared, clear):
    faults = parse_faults("kill-client=.2,drop=.2")
    seed, struck = prepared.setup.experiment.seed, []
    for seed in range(100):
        struck = [client for client in range(5) if faults.of(seed, 1, client)]
        if len(struck) == 1:
            break
    server = changed(prepared, experiment=replace(prepared.setup.experiment, seed=seed)).server
    grid = FakeGrid(*({},) * 5)
    transport = GridTransport(grid, prepared.server, prepared.scorer, Settings(), grid.clock)
    faulty = Faulty(transport, faults, server)
    mean = sight_of(prepared.server, faulty, [], 0, lambda *_: None).transport
    answers = list(mean(tasks_of(prepared)))
    assert [answer.client for answer in answers if isinstance(answer, Failure)] == struck
    updates = [answer for answer in answers if not isinstance(answer, Failure)]
    state = mean.combine(prepared.server.first_state().adapter, updates).flat
    torch.testing.assert_close(state, clear({*range(5)} - {*struck}), atol=1e-7, rtol=1e-6)


def test_below_the_quorum_nothing_is_revealed(prepared_of):
    asked = []

    def spoil(request, reply):
        asked.append(step_of(request))
        lost = Error(ErrorCode.CLIENT_APP_CRASHED, "killed")
        return lost if asked[-1] == "mask" and client_of(request) == BAD else reply

    with pytest.raises(FedMoEError, match=r"round 1: 4 of 5 clients .* quorum 1 needs 5.*killed"):
        played(prepared_of("quorum=1"), spoil)
    assert "mask" in asked
    assert "reveal" not in asked


def test_noised_sums_are_paid_for_before_they_are_known(prepared_of, monkeypatch):
    spent = []

    def crash(_):
        assert [line["epsilon"] > 0 for line in spent] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(Collector, "unmasked", crash)
    with pytest.raises(KeyboardInterrupt):
        played(prepared_of(PRIVATE, UNIFORM), write=lambda line, *_: spent.append(line))


@pytest.mark.parametrize("more", [(), (PRIVATE, UNIFORM)])
def test_a_round_without_clients_repeats_no_sums(prepared_of, more):
    told, server = [], prepared_of(*more).server
    sight = sight_of(server, Here(server.setup.experiment), [], 0, lambda *a: told.append(a))
    sight.masked.report, sight.masked.counts = {"loss_after": 1.0}, torch.ones(2).numpy()
    sight.planned([])
    sight.finished(replace(server.first_state(), round=1))
    assert told == []


def test_a_node_without_a_worker_has_nowhere_to_keep_keys(prepared):
    with pytest.raises(FedMoEError, match=r"0 of 5 clients.*worker_idle_seconds=0 leaves no"):
        played(prepared, nodes=({"worker_idle_seconds": "0"},) * 5)


def test_clients_add_the_noise_that_their_experiment_asks_for(prepared_of):
    """One round of clients that hardly learn: the noise on the mean is as large as it should be."""
    prepared = prepared_of(
        PRIVATE, UNIFORM, "training.learning_rate=1e-9", "secure_aggregation={threshold: 1}"
    )
    _, state = played(prepared)
    start = prepared.server.first_state().adapter.flat
    # 5 of at least 5 - 1 stayed; the mean divides their sum by 5.
    expected = 0.05 / (1 - 0.02) ** 0.5 * (5 / 4) ** 0.5 / 5
    assert (state - start).std().item() == pytest.approx(expected, rel=0.1)

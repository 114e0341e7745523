"""Deadlines, late replies, busy nodes and nodes that leave: on a clock that only waiting moves."""

import math
from dataclasses import replace

import pytest
from fake_grid import FakeGrid, client_of
from flwr.app import Error, MessageType

import server.round
from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure, Update
from fedmoe.rounds import plan_round
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")


def over(grid, prepared, **settings):
    """A transport whose server takes replies of round 1 in any: its rate does not fall."""
    training = replace(prepared.setup.training, schedule="constant")
    setup = replace(prepared.setup, training=training)
    server = replace(prepared.server, setup=setup)
    return GridTransport(grid, server, prepared.scorer, Settings(**settings), grid.clock)


@pytest.fixture(scope="module")
def tasks(prepared):
    """The first round's, all four clients'."""
    return plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )


def of_round(tasks, number):
    return [replace(task, round=number) for task in tasks]


def codes(answers):
    return [answer.code if isinstance(answer, Failure) else "ok" for answer in answers]


def slow(node, seconds, others=5.0):
    """Seconds that messages take where a node needs `seconds` for a task and the rest less."""

    def takes(request):
        if client_of(request) is None:
            return 0.0
        return seconds if request.metadata.dst_node_id == 100 + node else others

    return takes


@pytest.mark.parametrize("task_seconds", [15.0, 60.0])
def test_no_message_outlives_its_task_or_its_round(prepared, known, tasks, task_seconds):
    grid = FakeGrid({}, known=known, seconds=slow(0, 10.0))
    answers = list(over(grid, prepared, round_seconds=35.0, task_seconds=task_seconds)(tasks))
    sent = [m for m in grid.sent if m.metadata.message_type == MessageType.TRAIN]
    assert len(sent) == 4
    for message in sent:
        end = grid.ends[message.metadata.message_id]
        assert message.metadata.ttl <= task_seconds
        assert end <= 35.0 + 1e-6
    # The fourth was sent at 30 s and would have taken 10.
    assert codes(answers) == ["ok", "ok", "ok", "late"]


@pytest.mark.parametrize("forgets", [False, True])
def test_what_is_open_when_the_round_ends_is_late_and_the_rest_counts(
    prepared, known, tasks, forgets
):
    grid = FakeGrid({}, {}, known=known, seconds=slow(1, math.inf), forgets=forgets)
    answers = list(over(grid, prepared, round_seconds=30.0)(tasks))
    assert codes(answers) == ["ok", "late", "ok", "ok"]
    assert answers[1].reason.startswith("node 101: no answer ")
    assert grid.clock.now == pytest.approx(30.0, abs=1.0)


def test_what_was_never_sent_is_late_too_and_says_why(prepared, known, tasks):
    grid = FakeGrid({}, known=known, seconds=slow(0, 20.0))
    answers = list(over(grid, prepared, round_seconds=30.0)(tasks))
    assert codes(answers) == ["ok", "late", "late", "late"]
    assert "over before it was sent: every node had other tasks" in answers[2].reason
    assert [c for c in grid.clients_of(0) if c is not None] == [0, 1]


@pytest.mark.parametrize("forgets", [False, True])
def test_a_busy_node_gets_no_task_until_it_has_answered(prepared, known, tasks, forgets, caplog):
    def stamp_late(request, reply):
        if request.metadata.dst_node_id == 101 and client_of(request) is not None:
            scalars = reply["config"]["scalars"].replace('"loss_before": ', '"loss_before": 99')
            reply["config"]["scalars"] = scalars
        return reply

    grid = FakeGrid(
        {}, {"name": "lab"}, known=known, seconds=slow(1, 100.0), forgets=forgets, spoil=stamp_late
    )
    transport = over(grid, prepared, task_seconds=20.0)
    first = list(transport(tasks))
    assert codes(first) == ["ok", "late", "ok", "ok"]
    assert "lab: no answer" in first[1].reason
    rounds = 1
    while grid.clock.now < 100:
        rounds += 1
        answers = list(transport(of_round(tasks, rounds)))
        assert [answer.round for answer in answers] == [rounds] * 4
        assert codes(answers) == ["ok"] * 4
        assert all(answer.loss_before < 90 for answer in answers)
    assert rounds > 3
    assert [c for c in grid.clients_of(1) if c is not None] == [1]
    grid.seconds = slow(1, 5.0)
    list(transport(of_round(tasks, rounds + 1)))
    assert [c for c in grid.clients_of(1) if c is not None] == [1, 1, 3]
    said = "dropped the answer of lab to client 1's task of round 1: 80."
    assert (said in caplog.text) == (not forgets)
    assert not forgets or "lab is responsive again" in caplog.text


def test_a_late_reply_is_not_taken_for_the_same_clients_next_task(prepared, known, tasks, caplog):
    """The only node answers a task of round 1 while that of round 2 is out."""
    grid = FakeGrid({"clients": "0"}, known=known, seconds=slow(0, 30.0))
    transport = over(grid, prepared, task_seconds=20.0, node_seconds=60.0)
    (first,) = transport(tasks[:1])
    assert codes([first]) == ["late"]
    (second,) = over_late(transport, of_round(tasks[:1], 2))
    assert codes([second]) == ["late"]
    assert caplog.text.count("dropped the answer of node 100") == 1
    grid.seconds = slow(0, 5.0)
    (third,) = transport(of_round(tasks[:1], 3))
    assert (third.round, codes([third])) == (3, ["ok"])


def over_late(transport, tasks):
    """A round that is not kept from a busy node."""
    transport.nodes.busy.clear()
    return list(transport(tasks))


def test_a_round_does_not_wait_for_busy_nodes_alone_for_ever(prepared, known, tasks):
    grid = FakeGrid({}, known=known, seconds=slow(0, math.inf))
    transport = over(grid, prepared, task_seconds=20.0, node_seconds=30.0)
    answers = list(transport(tasks))
    assert codes(answers) == ["late", "busy", "busy", "busy"]
    assert answers[1].reason == "node 100 is busy with client 0's task of round 1"
    assert grid.clock.now == pytest.approx(50.0, abs=1.0)
    with pytest.raises(FedMoEError, match=r"(?s)0 usable node.*node 100: busy.*client 0's task"):
        list(transport(of_round(tasks, 2)))
    assert grid.clock.now == pytest.approx(80.0, abs=1.0)


def test_a_node_that_leaves_hands_its_task_to_another(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known, seconds=slow(1, 50.0))
    grid.clock.at(7.0, lambda: grid.configs.pop(101))
    answers = list(over(grid, prepared, num_nodes=2)(tasks))
    assert all(isinstance(answer, Update) for answer in answers)
    assert grid.clients_of(1) == [None, 1]
    assert 1 in grid.clients_of(0)
    assert grid.clock.now < 40


def test_when_all_nodes_have_left_the_wait_has_an_end(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known, seconds=slow(1, 50.0, others=50.0))
    grid.clock.at(7.0, grid.configs.clear)
    transport = over(grid, prepared, node_seconds=30.0)
    answers = list(transport(tasks))
    assert codes(answers) == ["failed"] * 4
    assert "node_unavail (Flower error 5)" in answers[0].reason
    with pytest.raises(FedMoEError, match=r"0 usable node\(s\) after 30 s; expected 1 or more"):
        list(transport(of_round(tasks, 2)))
    # One wait for those that were killed to come back, and one for any at all.
    assert grid.clock.now == pytest.approx(67.0, abs=3.0)


def test_a_killed_node_that_alone_holds_its_clients_data_costs_no_update(prepared, known, tasks):
    """It is started again, under its old number as Flower has it, and does its task again."""
    grid = FakeGrid({"clients": "1"}, {}, known=known, seconds=slow(0, 50.0))
    grid.clock.at(7.0, lambda: grid.configs.pop(100))

    def restart():
        grid.configs[100], grid.idle_at[100] = {"clients": "1"}, 0.0

    grid.clock.at(20.0, restart)
    answers = list(over(grid, prepared, num_nodes=2, node_seconds=30.0)(tasks))
    assert codes(answers) == ["ok"] * 4
    assert grid.clients_of(0) == [None, 1, None, 1]


def test_a_killed_node_costs_none_of_its_clients_their_update(prepared, known, tasks):
    """Also those whose tasks had not been sent when it was killed."""
    grid = FakeGrid({}, known=known, seconds=slow(1, 0.0, others=8.0))
    grid.clock.at(10.0, grid.configs.clear)
    grid.clock.at(30.0, lambda: (grid.configs.update({100: {}}), grid.idle_at.clear()))
    answers = list(over(grid, prepared, node_seconds=30.0)(tasks))
    assert codes(answers) == ["ok"] * 4


@pytest.mark.parametrize(("deaths", "code"), [(2, "ok"), (3, "failed")])
def test_a_client_app_that_is_killed_does_its_task_again(prepared, known, tasks, deaths, code):
    died = []

    def crash(request, reply):
        if client_of(request) != 1 or len(died) == deaths:
            return reply
        died.append(request)
        return Error(8, "ClientApp stopped responding")

    grid = FakeGrid({}, known=known, spoil=crash)
    assert codes(over(grid, prepared)(tasks)) == ["ok", code, "ok", "ok"]
    assert len(died) == deaths


def test_without_keys_a_node_comes_back_under_another_number(prepared, known, tasks):
    grid = FakeGrid({"clients": "1"}, {}, known=known, seconds=slow(0, 50.0))
    grid.clock.at(7.0, lambda: grid.configs.pop(100))
    grid.clock.at(20.0, lambda: grid.configs.update({102: {"clients": "1"}}))
    answers = list(over(grid, prepared, num_nodes=2, node_seconds=30.0)(tasks))
    assert codes(answers) == ["ok"] * 4


def test_a_node_that_comes_back_is_asked_again(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known, seconds=slow(1, 50.0))
    transport = over(grid, prepared)
    grid.clock.at(7.0, lambda: grid.configs.pop(101))
    list(transport(tasks))
    grid.configs[101], grid.idle_at = {}, {}
    list(transport(of_round(tasks, 2)))
    assert grid.clients_of(1)[:4] == [None, 1, None, 1]


def test_a_round_without_tasks_waits_for_nobody(prepared):
    grid = FakeGrid()
    assert list(over(grid, prepared)([])) == []
    assert grid.clock.now == 0


@pytest.mark.parametrize(("room", "done_by_the_other"), [(2**31, [1, 3, 2]), (0, [1])])
def test_a_slow_node_holds_up_others_only_where_memory_is_short(
    prepared, known, tasks, monkeypatch, room, done_by_the_other
):
    monkeypatch.setattr(server.round, "AHEAD", 1)
    monkeypatch.setattr(server.round, "MOST_WAITING_BYTES", room)
    grid = FakeGrid({}, {}, known=known, seconds=slow(0, math.inf))
    answers = over(grid, prepared, task_seconds=50.0)(tasks)
    assert isinstance(next(answers), Failure)
    assert [c for c in grid.clients_of(1) if c is not None][:3] == done_by_the_other
    assert codes(answers) == ["ok"] * 3


def test_every_request_has_a_nonce_of_its_own(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known)
    list(over(grid, prepared)(tasks))
    nonces = [message.content["config"]["nonce"] for message in grid.sent]
    assert len(nonces) == len(set(nonces)) == 6
    assert all(len(bytes.fromhex(nonce)) == 16 for nonce in nonces)


def test_a_recorded_reply_that_is_sent_again_is_refused(prepared, known, tasks):
    def replay(request, reply):
        return known[2].copy() if client_of(request) == 2 else reply

    grid = FakeGrid({}, known=known, spoil=replay)
    answers = list(over(grid, prepared)(tasks))
    assert codes(answers) == ["ok", "ok", "replay", "ok"]
    assert "it is an answer to another request" in answers[2].reason


def test_an_update_of_another_round_is_refused(prepared, known, tasks):
    def old(request, reply):
        if client_of(request) == 2:
            reply["config"]["scalars"] = known[2]["config"]["scalars"]
            del reply["config"]["checksum"]  # as if the node had sealed it so
        return reply

    grid = FakeGrid({}, known=known, spoil=old)
    answers = list(over(grid, prepared)(of_round(tasks, 2)))
    assert codes(answers) == ["ok", "ok", "task", "ok"]
    assert "update for round 1; its task has 2" in answers[2].reason


def test_a_second_reply_to_a_request_is_dropped(prepared, known, tasks, monkeypatch, caplog):
    grid, seen = FakeGrid({}, known=known), []
    pull = grid.pull_messages

    def twice(ids):
        replies = pull(ids)
        seen.extend(replies)
        return [*seen, *replies] if replies else []

    monkeypatch.setattr(grid, "pull_messages", twice)
    answers = list(over(grid, prepared)(tasks))
    assert codes(answers) == ["ok"] * 4
    assert "dropped a second reply to client 1's task of round 1, from node 100" in caplog.text


def test_a_reply_from_another_node_than_was_asked_is_refused(prepared, known, tasks, monkeypatch):
    grid = FakeGrid({}, known=known)
    pull = grid.pull_messages

    def disguised(ids):
        replies = pull(ids)
        for reply in replies:
            if reply.metadata.message_type == MessageType.TRAIN:
                reply.metadata.__dict__["_src_node_id"] = 666
        return replies

    monkeypatch.setattr(grid, "pull_messages", disguised)
    answers = list(over(grid, prepared)(tasks[:1]))
    assert codes(answers) == ["replay"]
    assert answers[0].reason == "node 100: the reply is node 666's; expected node 100's"

"""The grid transport: the plain loop's bits, every fault a reason, and tasks where data lies."""

import json
import re
from dataclasses import replace

import pytest
import torch
from fake_grid import FakeGrid, client_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict

from fedmoe.adapter import Adapter
from fedmoe.errors import FedMoEError
from fedmoe.rounds import plan_round
from fedmoe.wire import Failure, pack_task, pack_update
from server.messages import read_update
from server.transport import GridTransport

BAD = 2
"""The client whose reply is spoilt."""


@pytest.fixture(scope="module")
def known(prepared):
    """Every client's reply to its task of the first round."""
    grid = FakeGrid({})
    list(over(grid, prepared)(tasks_of(prepared)))
    return {client_of(request): grid.answer(request) for request in grid.sent[1:]}


def over(grid, prepared, num_nodes=1, node_seconds=5.0, task_seconds=60.0):
    return GridTransport(grid, prepared, num_nodes, node_seconds, task_seconds)


def test_the_grid_gives_the_plain_loops_adapter(prepared, plain_digest, run_over):
    state = run_over(over(FakeGrid({}, {}, {}), prepared))
    assert state.adapter.digest() == plain_digest


def test_a_task_goes_to_the_node_of_its_client(prepared, known):
    grid = FakeGrid({"clients": "0,3"}, {}, {"clients": 1}, known=known)
    answers = list(over(grid, prepared)(tasks_of(prepared)))
    assert [answer.client for answer in answers] == [0, 1, 2, 3]
    assert [grid.clients_of(node) for node in range(3)] == [[None, 0, 3], [None, 2], [None, 1]]


def test_a_client_without_a_node_fails_with_a_reason(prepared, known):
    grid = FakeGrid({"clients": "0,1,3"}, known=known)
    answers = list(over(grid, prepared)(tasks_of(prepared)))
    assert answers[2] == Failure(1, 2, "no node holds the data of client 2")
    assert not any(isinstance(answers[client], Failure) for client in (0, 1, 3))


def test_a_node_refuses_a_task_of_a_client_that_is_not_its_own(prepared):
    grid = FakeGrid({"clients": "1"})
    transport = over(grid, prepared)
    transport.nodes.held = {100: frozenset()}
    transport.nodes.asked = {100}
    (answer,) = transport(tasks_of(prepared)[:1])
    assert "client 0 is not one of this node's: [1]" in answer.reason


def edit(change):
    """Spoil an update before it is packed again."""

    def spoil(reply, prepared, task):
        packed = pack_update(change(prepared.read(read_update(reply), task)))
        return content(packed.scalars, bytes(packed.buffer))

    return spoil


def repack(change):
    """Spoil the packed form of an update."""
    return lambda reply, *_: content(*change(reply["config"]["scalars"], read_update(reply).buffer))


def content(scalars, data):
    array = Array("uint8", (len(data),), "bytes", data)
    return RecordDict(
        {"config": ConfigRecord({"scalars": scalars}), "arrays": ArrayRecord({"buffer": array})}
    )


def words(**values):
    return lambda *_: RecordDict({"config": ConfigRecord(values)})


def with_nan(update):
    flat = update.delta.flat.clone()
    flat[3] = torch.nan
    return replace(update, delta=Adapter(update.delta.layout, flat))


FAULTS = {
    "expected finite": edit(with_nan),
    "update for client 3": edit(lambda update: replace(update, client=3)),
    "-1 examples": edit(lambda update: replace(update, examples=-1)),
    "bytes; expected": repack(lambda scalars, data: (scalars, data[:-4])),
    "not JSON": repack(lambda scalars, data: ("{", data)),
    "recursion": repack(lambda scalars, data: ("[" * 10**5, data)),
    "no config": lambda *_: RecordDict(),
    "scalars is missing": words(scalars=3),
    "no buffer": words(scalars="{}"),
    "disk is full": words(reason="disk is full"),
    "node_unavail .Flower error 5": lambda *_: Error(5, "node_unavail"),
    "no answer within 0.3 s": lambda *_: None,
}
"""What the failure says, and what the reply is made of."""


@pytest.mark.parametrize("reason", FAULTS)
def test_a_damaged_reply_is_a_failure_and_the_round_goes_on(prepared, known, reason):
    tasks = tasks_of(prepared)

    def spoil(request, reply):
        bad = client_of(request) == BAD
        return FAULTS[reason](reply, prepared, tasks[BAD]) if bad else reply

    grid = FakeGrid({}, {}, known=known, spoil=spoil)
    answers = list(over(grid, prepared, task_seconds=0.3)(tasks))
    assert [answer.client for answer in answers] == [0, 1, 2, 3]
    assert [isinstance(answer, Failure) for answer in answers] == [False, False, True, False]
    assert re.search(reason, answers[BAD].reason), answers[BAD].reason


def test_a_message_that_flower_does_not_take_is_a_failure(prepared, known, monkeypatch):
    grid = FakeGrid({}, {}, known=known)
    push = grid.push_messages

    def choosy(messages):
        return [] if client_of(messages[0]) == BAD else push(messages)

    monkeypatch.setattr(grid, "push_messages", choosy)
    answers = list(over(grid, prepared)(tasks_of(prepared)))
    assert "did not accept the message" in answers[BAD].reason
    assert not any(isinstance(answers[client], Failure) for client in (0, 1, 3))


def test_a_client_that_raises_is_a_failure_with_its_reason(prepared, monkeypatch):
    import clients.resident

    real = clients.resident.resident
    built = []

    def broken(*arguments):
        built.append(arguments)
        if len(built) == 1 + BAD:
            raise MemoryError("out of memory")
        return real(*arguments)

    # The app looks it up at each task.
    monkeypatch.setattr(clients.resident, "resident", broken)
    answers = list(over(FakeGrid({}), prepared)(tasks_of(prepared)))
    assert "out of memory" in answers[BAD].reason
    assert not any(isinstance(answers[client], Failure) for client in (0, 1, 3))


def test_a_fault_of_a_nodes_own_settings_comes_back_in_plain_words(prepared):
    grid = FakeGrid({"overrides": "data.path=/nowhere/rows.jsonl"})
    answer, *_ = over(grid, prepared)(tasks_of(prepared))
    assert "/nowhere/rows.jsonl: no such file" in answer.reason


def test_a_node_with_other_code_gets_no_task(prepared):
    transport = over(FakeGrid({}), prepared, node_seconds=0.3)
    transport.nodes.code = "another"
    with pytest.raises(FedMoEError, match=r"runs code .*, the server another"):
        next(transport(tasks_of(prepared)))


def test_too_few_nodes_end_the_run_with_a_hint(prepared):
    transport = over(FakeGrid({}), prepared, num_nodes=2, node_seconds=0.3)
    with pytest.raises(FedMoEError, match=r"1 usable node\(s\) after 0.3 s; expected 2 or more"):
        next(transport(tasks_of(prepared)))


def test_a_request_carries_no_more_than_its_task(prepared):
    grid = FakeGrid({})
    task = tasks_of(prepared)[0]
    list(over(grid, prepared)([task]))
    config, packed = grid.sent[-1].content["config"], pack_task(task)
    assert set(config) == {"code", "experiment", "run", "scalars"}
    assert json.loads(config["scalars"]) == json.loads(packed.scalars)
    assert grid.sent[-1].content["arrays"]["buffer"].data == packed.buffer


def tasks_of(prepared):
    """The first round's tasks, all four clients'."""
    return plan_round(prepared.first_state(), prepared.members, 4, prepared.experiment.seed)

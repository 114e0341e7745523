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
from fedmoe.messages.codec import pack_task, pack_update
from fedmoe.messages.records import Failure
from fedmoe.rounds import plan_round
from server.messages import read_update
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")

BAD = 2
"""The client whose reply is spoilt."""


def over(grid, prepared, **settings):
    return GridTransport(grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock)


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
    assert answers[2] == Failure(1, 2, "no node has the data of client 2")
    assert not any(isinstance(answers[client], Failure) for client in (0, 1, 3))


def test_a_node_refuses_a_task_of_a_client_that_is_not_its_own(prepared):
    grid = FakeGrid({"clients": "1"})
    # The server has been told that it takes any.
    grid.spoil = lambda request, reply: reply if client_of(request) == 0 else any_client(reply)
    (answer,) = over(grid, prepared)(tasks_of(prepared)[:1])
    assert "client 0 is not one of this node's, [1]" in answer.reason
    assert answer.code == "failed"


def any_client(reply):
    reply["config"]["clients"] = ""
    return reply


def edit(change):
    """Spoil an update before it is packed again."""

    def spoil(reply, prepared, task):
        packed = pack_update(change(prepared.server.read(read_update(reply), task)))
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


def flipped(reply):
    """One bit of the buffer is another, and the checksum is the sender's."""
    data = bytearray(read_update(reply).buffer)
    data[-1] ^= 1
    damaged = content(reply["config"]["scalars"], bytes(data))
    damaged["config"]["checksum"] = reply["config"]["checksum"]
    return damaged


def words(**values):
    return lambda *_: RecordDict({"config": ConfigRecord(values)})


def with_nan(update):
    flat = update.delta.flat.clone()
    flat[3] = torch.nan
    return replace(update, delta=Adapter(update.delta.layout, flat))


FAULTS = {
    "expected finite": edit(with_nan),
    "update for client 3": edit(lambda update: replace(update, client=3)),
    "examples is -1": edit(lambda update: replace(update, examples=-1)),
    "bytes; expected": repack(lambda scalars, data: (scalars, data[:-4])),
    "checksum is not the sender's": lambda reply, *_: flipped(reply),
    "not JSON": repack(lambda scalars, data: ("{", data)),
    "characters; expected at most 1048576": repack(
        lambda scalars, data: (2**20 * " " + scalars, data)
    ),
    "recursion": repack(lambda scalars, data: ("[" * 10**5, data)),
    "no config": lambda *_: RecordDict(),
    "scalars is missing": words(scalars=3),
    "no buffer": words(scalars="{}"),
    "disk is full": words(reason="disk is full"),
    "raised .Flower error 2": lambda *_: Error(2, "raised"),
    "nonce is missing": words(nonce=3),
    "answer to another request": words(nonce="0" * 32, scalars="{}"),
    "no answer within 0.3 s": lambda *_: None,
}
"""The failure's message, and the parts of the reply."""


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
    assert "did not accept the message; it may be too large" in answers[BAD].reason
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
    grid = FakeGrid({"overrides": "model.path=/nowhere/model"})
    answer, *_ = over(grid, prepared)(tasks_of(prepared))
    assert "/nowhere/model" in answer.reason


def test_too_few_nodes_end_the_run_with_a_hint(prepared):
    transport = over(FakeGrid({}), prepared, num_nodes=2, node_seconds=0.3)
    with pytest.raises(FedMoEError, match=r"1 usable node\(s\) after 0.3 s; expected 2 or more"):
        next(transport(tasks_of(prepared)))


def test_a_request_carries_no_more_than_its_task(prepared):
    grid = FakeGrid({})
    task = tasks_of(prepared)[0]
    list(over(grid, prepared)([task]))
    config, packed = grid.sent[-1].content["config"], pack_task(task)
    assert config["split"] == ""
    named = {"code", "checksum", "data", "experiment", "nonce", "run", "scalars", "split"}
    assert set(config) == named
    assert json.loads(config["scalars"]) == json.loads(packed.scalars)
    assert grid.sent[-1].content["arrays"]["buffer"].data == packed.buffer


def tasks_of(prepared):
    """The first round's tasks, all four clients'."""
    return plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )

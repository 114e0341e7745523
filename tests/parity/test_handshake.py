"""The handshake: a node's description, refusals with reasons, and whom a named node serves."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from fake_grid import FakeGrid, client_of
from flwr.app import ConfigRecord, RecordDict

from clients.about import about
from clients.messages import checksum, parsed
from fedmoe.aggregation.robust.judgement import Judgement, Verdict
from fedmoe.errors import ConfigError, FedMoEError, WireError
from fedmoe.messages.records import Failure, Update
from fedmoe.rounds import Member, plan_round
from server.about import Expected
from server.log import LogLines
from server.messages import read_about
from server.settings import Settings, read_owners
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")

PROJECT = Path(__file__).parents[2]
MEMBERS = [Member(0, "high", 4), Member(1, "low", 1), Member(2, "low", 1), Member(3, "high", 4)]


def over(grid, prepared, **settings):
    return GridTransport(grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock)


@pytest.fixture(scope="module")
def tasks(prepared):
    return plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )


def test_a_node_says_what_it_is_without_torch():
    code = (
        "import sys; from clients.app import app; from clients.about import about; "
        "print(about({'name': 'lab', 'clients': '3,0'})); assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "'name': 'lab', 'clients': '0,3'" in said.stdout


def test_what_a_node_says_of_itself_fits_this_server():
    found = Expected("abc123", 4).check(about({"name": "lab-3090", "clients": "0,3"}))
    assert (found.name, found.held, found.code) == ("lab-3090", frozenset({0, 3}), "abc123")
    assert found.torch == version("torch")
    assert found.memory_bytes > 2**28
    assert f"transformers {version('transformers')}" in str(found)


REFUSED = {
    r"runs code def, the server abc123": {"code": "def"},
    r"runs torch 2.1.0\+cu118, the server 2.*torch 2.*allow_versions": {"torch": "2.1.0+cu118"},
    r"runs transformers 4.9.1, the server 5": {"transformers": "4.9.1"},
    r"holds client 4; this run's clients are 0..3": {"clients": "1,4"},
    r"gives it client 2; its own config names 1": {"name": "pi", "clients": "1"},
    r"not usable: name: String should match": {"name": "a b\n"},
    r"not usable: clients: String should match": {"clients": "1,,"},
    r"not usable: clients: String should match.": {"clients": "9" * 10},
    r"not usable: clients: String should match\b": {"clients": "\U00010d40"},  # a digit to Rust
    r"not usable: clients: String should .atch": {"clients": "\u0663"},  # Arabic for 3
    r"not usable: name: String should match.": {"name": "l\u0430b"},  # a Cyrillic a
    r"not usable: name: String should .atch": {"name": "lab\u200d"},  # invisible
    r"not usable: code: String should match": {"code": "\u00aa"},
    r"not usable: torch: String should match": {"torch": "2.\u0661"},
    r"not usable: .*__dataclass_self__": {"__dataclass_self__": 1},
    r"not usable: self: Unexpected": {"self": 1},
    r"not usable: memory_bytes: Input should be greater": {"memory_bytes": -1},
    r"not usable: memory_bytes: Input should be a valid integer": {"memory_bytes": 1e9},
    r"not usable: threads: Input should be a valid integer": {"threads": True},
    r"not usable: device: String should have at most 100": {"device": "x" * 101},
    r"not usable: python: String should match": {"python": "3.11; rm"},
    r"not usable: more: Unexpected": {"more": "words"},
}
"""Why a node gets no tasks, and what it says."""


@pytest.mark.parametrize("reason", REFUSED)
def test_a_node_that_does_not_fit_is_refused_and_both_sides_are_named(reason):
    expected = Expected("abc123", 4, assigned={"pi": frozenset({1, 2})})
    with pytest.raises(WireError, match=reason):
        expected.check(about({}) | REFUSED[reason])


@pytest.mark.parametrize("name", sorted(about({})))
def test_a_node_that_leaves_something_out_is_refused(name):
    with pytest.raises(WireError, match=f"not usable: {name}"):
        Expected("abc123", 4).check({k: v for k, v in about({}).items() if k != name})


def test_a_node_under_another_name_than_its_keys_is_refused():
    expected = Expected("abc123", 4, assigned=dict.fromkeys(("lab", "pi", "Lab"), frozenset({0})))
    said = about({"name": "lab"})
    assert expected.check(said, "lab").name == expected.check(said).name == "lab"
    for registered in ("pi", "Lab"):
        with pytest.raises(WireError, match=f"'lab', and its key .* for '{registered}'"):
            expected.check(said, registered)
    with pytest.raises(WireError, match="calls itself '', and its key was registered for 'lab'"):
        expected.check(about({}), "lab")


def rows(*names, **about_):
    return about(about_) | {"rows": ",".join(f"{name}=0123456789abcdef" for name in names)}


def test_a_node_speaks_for_the_owners_that_its_key_covers_alone():
    bare, listed = Expected("abc123", 0), read_owners("lab=berlin,paris; pi=rome")
    given = Expected("abc123", 0, owners=listed)
    for expected, names, registered in (
        (bare, ["lab"], "lab"),
        (bare, ["withheld-01234567"], "lab"),
        (bare, ["berlin", "paris", "lab"], ""),  # a SuperLink that asks for no keys
        (given, ["berlin", "paris"], "lab"),
        (given, ["berlin", "withheld-01234567"], "lab"),
        (given, ["berlin"], ""),
        (given, ["lab2"], "lab2"),
    ):
        name = registered or "lab"
        assert [*expected.check(rows(*names, name=name), registered).own] == names
    for expected, names, registered in (
        (bare, ["berlin"], "lab"),
        (bare, ["lab", "x1"], "lab"),
        (bare, ["withheld-01234567", "withheld-01234568"], "lab"),
        (given, ["rome"], "lab"),
        (given, ["rome"], ""),
        (given, ["lab"], "lab"),
        (given, ["berlin"], "berlin"),
        (given, ["berlin", "paris", "withheld-01234567"], "lab"),
    ):
        name = registered or "lab"
        with pytest.raises(WireError, match=f"it has rows of client '.*, and '{name}' may have"):
            expected.check(rows(*names, name=name), registered)
    with pytest.raises(ConfigError, match="'oslo' is not one of 'berlin'"):
        read_owners("lab=oslo", ["berlin"])


def test_a_registered_node_holds_the_pooled_clients_that_it_is_given():
    said = about({"name": "lab", "clients": "0,3"})
    assigned = {"lab": frozenset({0, 3})}
    assert Expected("abc123", 4, assigned=assigned).check(said, "lab").held == {0, 3}
    for given in ({}, {"lab": frozenset({0})}, {"pi": frozenset({0, 3})}):
        with pytest.raises(WireError, match=r"holds client \d, which .*does not give to 'lab'"):
            Expected("abc123", 4, assigned=given).check(said, "lab")


def test_a_registered_node_without_clients_of_pooled_data_gets_no_tasks(
    prepared, known, tasks, caplog
):
    grid = FakeGrid({"name": "lab"}, {"name": "pi"}, {"name": "pi"}, known=known)
    grid.registered = {100: "lab", 101: "pi"}
    answers = list(over(grid, prepared, nodes="lab=0,1,2")(tasks))
    assert [isinstance(answer, Update) for answer in answers] == [True, True, True, False]
    assert (grid.clients_of(1), grid.clients_of(2)) == ([None], [None])
    said = "registered for 'pi', to which the run config's `nodes` gives no client: it could answer"
    assert f"node 101 gets no tasks: its key was {said}" in caplog.text
    assert "node 102 gets no tasks: its key was registered without a name" in caplog.text
    with pytest.raises(FedMoEError, match="nodes=lab=0"):
        list(over(grid, prepared)(tasks))
    assert "`nodes` is empty: a node whose key is registered gets no tasks" in caplog.text


def test_a_nodes_name_and_clients_cannot_be_taken_over(prepared, known, tasks, caplog):
    own, more = {"name": "lab", "clients": "0"}, {"name": "more"}
    grid = FakeGrid(own, {"name": "lab"}, more, known=known)
    grid.registered = {100: "pi", 101: "lab", 102: "more"}
    answers = list(over(grid, prepared, nodes="lab=0,1; more=2,3")(tasks))
    assert all(isinstance(answer, Update) for answer in answers)
    assert grid.clients_of(0) == [None]
    assert grid.clients_of(1) == [None, 0, 1]
    said = "node 100 gets no tasks: it calls itself 'lab', and its key was registered for 'pi'"
    assert said in caplog.text


HOSTILE = {
    "a digit that Python does not read": {"clients": "\U00010d40"},
    "a name that Python takes for its own": {"__dataclass_self__": 1},
    "a megabyte of text": {"device": "x" * 10**6},
    "a word for every number": {"threads": "many", "memory_bytes": "much"},
}


@pytest.mark.parametrize("lie", HOSTILE)
def test_a_hostile_greeting_ends_its_nodes_part_and_not_the_run(
    prepared, known, tasks, caplog, lie
):
    def hostile(request, reply):
        if request.metadata.dst_node_id == 101 and "processor" in reply["config"]:
            for name, value in HOSTILE[lie].items():
                reply["config"][name] = value
        return reply

    grid = FakeGrid({"name": "a"}, {"name": "b"}, known=known, spoil=hostile)
    assert all(isinstance(answer, Update) for answer in over(grid, prepared)(tasks))
    said = [r.getMessage() for r in caplog.records if "node 101 gets no tasks" in r.getMessage()]
    assert said
    assert all(len(line) < 600 for line in said)


@pytest.mark.parametrize("said", ["{", "[" * 10**5, "9" * 5000, ""])
def test_a_request_that_cannot_be_read_is_refused(said):
    with pytest.raises(FedMoEError, match="the request cannot be read"):
        parsed(said)
    with pytest.raises(FedMoEError, match=r"checksum is .*; expected a number"):
        checksum(RecordDict({"config": ConfigRecord({"checksum": said})}))


def test_even_a_fault_in_reading_a_greeting_is_a_refusal(prepared, known, tasks, monkeypatch):
    monkeypatch.setattr(Expected, "check", lambda *_: int("no number"))
    with pytest.raises(FedMoEError, match=r"(?s)0 usable node.*invalid literal"):
        list(over(FakeGrid({"name": "a"}, known=known), prepared)(tasks))


def test_other_versions_are_taken_where_the_run_config_allows_them():
    other = about({}) | {"torch": "2.1.0", "transformers": "4.9.1", "processor": "arm64"}
    assert Expected("abc123", 4, allow_versions=True).check(other).torch == "2.1.0"
    near = about({}) | {"torch": ".".join([*version("torch").split(".")[:2], "99+cu130"])}
    Expected("abc123", 4).check(near)


def test_a_mixed_fleet_is_told_and_accepted(prepared, known, tasks, caplog):
    def other(request, reply):
        if request.metadata.dst_node_id == 101 and "processor" in reply["config"]:
            reply["config"]["processor"] = "arm64 Other NEON"
        return reply

    grid = FakeGrid({"name": "a"}, {"name": "b"}, known=known, spoil=other)
    answers = list(over(grid, prepared)(tasks))
    assert all(isinstance(answer, Update) for answer in answers)
    (line,) = (r.getMessage() for r in caplog.records if "a mixed fleet" in r.getMessage())
    assert "arm64 Other NEON" in line


def test_a_reason_cannot_forge_the_log():
    said = RecordDict({"config": ConfigRecord({"reason": "\x1b[2J\r" + 1000 * "x"})})
    with pytest.raises(WireError) as caught:
        read_about(said)
    assert str(caught.value).startswith("?[2J?xxx")
    assert len(str(caught.value)) == 500


def test_a_node_that_does_not_fit_gets_no_task_and_the_run_says_why(prepared, known, tasks):
    def older(request, reply):
        if client_of(request) is None and request.metadata.dst_node_id == 101:
            reply["config"]["transformers"] = "4.9.1"
        return reply

    grid = FakeGrid({}, {"name": "lab"}, known=known, spoil=older)
    answers = list(over(grid, prepared)(tasks))
    assert all(isinstance(answer, Update) for answer in answers)
    assert grid.clients_of(1) == [None]
    grid = FakeGrid({}, {}, known=known, spoil=older)
    with pytest.raises(FedMoEError, match=r"(?s)1 usable.*2 or more.*node 101: it runs transform"):
        list(over(grid, prepared, num_nodes=2)(tasks))


def test_a_node_with_other_code_gets_no_task(prepared, tasks, monkeypatch):
    monkeypatch.setattr("server.transport.code_digest", lambda *folders: "another")
    with pytest.raises(FedMoEError, match="runs code abc123, the server another"):
        next(over(FakeGrid({}), prepared)(tasks))


def test_a_silent_node_does_not_keep_the_others_from_beginning(prepared, known, tasks):
    silent = FakeGrid(
        {},
        {},
        known=known,
        seconds=lambda request: 1e9 if request.metadata.dst_node_id == 101 else 5.0,
    )
    transport = over(silent, prepared, node_seconds=30.0)
    assert all(isinstance(answer, Update) for answer in transport(tasks))
    begun = silent.clock.now
    assert begun == pytest.approx(30.0 + 4 * 5.0, abs=2.0)
    list(transport(tasks))
    # It is not waited for a second time.
    assert silent.clock.now - begun == pytest.approx(4 * 5.0, abs=2.0)
    assert silent.clients_of(1) == [None] * len(silent.clients_of(1))


def test_a_named_node_serves_whom_the_run_config_says(prepared, known, tasks):
    grid = FakeGrid({}, {"name": "lab"}, {"name": "pi"}, known=known)
    low = [m.client for m in prepared.server.members if m.tier == "low"]
    high = [m.client for m in prepared.server.members if m.tier == "high"]
    answers = list(over(grid, prepared, num_nodes=3, nodes="lab=high; pi=low")(tasks))
    assert all(isinstance(answer, Update) for answer in answers)
    assert grid.clients_of(0) == [None]
    assert grid.clients_of(1) == [None, *high]
    assert grid.clients_of(2) == [None, *low]


def test_clients_of_a_named_node_that_is_not_there_fail_and_name_it(prepared, known, tasks):
    answers = list(over(FakeGrid({}, known=known), prepared, nodes="lab=2")(tasks))
    assert answers[2] == Failure(1, 2, "client 2 is served by lab, which is not here")
    assert [isinstance(a, Update) for a in answers] == [True, True, False, True]


def test_of_two_nodes_with_one_name_the_second_waits_until_the_first_has_left(
    prepared, known, tasks, caplog
):
    grid = FakeGrid({"name": "lab"}, {"name": "lab"}, known=known)
    transport = over(grid, prepared)
    list(transport(tasks))
    first = next(node for node in (0, 1) if len(grid.clients_of(node)) > 1)
    assert grid.clients_of(1 - first) == [None]
    assert f"node {101 - first} gets no tasks for now: node {100 + first} is also" in caplog.text
    with pytest.raises(FedMoEError, match="is also called 'lab'; give each node a separate name"):
        list(over(FakeGrid({"name": "lab"}, {"name": "lab"}), prepared, num_nodes=2)(tasks))
    del grid.configs[100 + first]
    list(transport(tasks))
    assert grid.clients_of(1 - first)[1:] == [0, 1, 2, 3]


def test_the_log_names_the_node_of_an_answer(prepared, known, tasks, caplog):
    caplog.set_level("INFO", logger="flwr")
    places = {}
    grid = FakeGrid({"name": "lab-3090"}, known=known)
    lines = LogLines(places)
    transport = GridTransport(
        grid, prepared.server, prepared.scorer, Settings(), grid.clock, places
    )
    for task, answer in zip(tasks, transport(tasks), strict=True):
        lines.answered(task, answer)
    assert "round 1: client 2 (" in caplog.text
    assert caplog.text.count(" on lab-3090: ") == 4
    assert "lab-3090, cpu, " in caplog.text
    verdicts = [Verdict(client, 0.0, 0.5, 0.5, refused, 3) for client, refused in ((0, 3), (1, 2))]
    lines.judged(1, Judgement("clip", tuple(verdicts), 3, 0, 3))
    assert "round 1: client 0 is left out by the rule 'clip'" in caplog.text
    assert "client 1 is left out" not in caplog.text

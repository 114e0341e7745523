"""Asynchronous runs over a grid: nobody waits for the slowest; the recorded order is the run."""

from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from fake_grid import FakeGrid, client_of
from flwr.app import Error
from recorded import order_of, repeated

from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, FedMoEError, FedMoEWarning
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.prepare import prepare
from fedmoe.runs.session import run
from server.log import LogLines
from server.settings import Settings
from server.stream import GridStream

pytestmark = pytest.mark.usefixtures("quick_digest")

BUFFERED = ["aggregation={name: fedbuff, buffer_size: 2}", "rescaling={name: none}", "rounds=4"]
OWNERS = [{"clients": str(client)} for client in range(4)]
CLIENTS = Path(__file__).parents[2] / "clients"


@pytest.fixture(autouse=True)
def same_code(monkeypatch):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")


@pytest.fixture
def live(experiment_file, tmp_path):
    """Runs an experiment over a grid; returns its ledger."""

    def go(grid, *overrides, folder=tmp_path, resume="no", **settings):
        settings = {"num_nodes": len(grid.configs)} | settings
        chosen = [*BUFFERED, *overrides, f"simulation.folder={folder}"]

        def make_workers(server, scorer, _):
            return GridStream(grid, server, scorer, Settings(**settings), grid.clock)

        experiment = load_experiment(experiment_file, chosen)
        made = run(experiment, LogLines({}), make_workers, resume, nodes_code=CLIENTS)
        return read_ledger(made / "ledger.jsonl")

    return go


@pytest.fixture(scope="module")
def run_of_order(experiment_file):
    """Repeats an order of arrival in this process; returns the digest of the last adapter."""

    @cache
    def prepared_for(rounds):
        chosen = [*BUFFERED, f"rounds={rounds}"]
        return prepare(load_experiment(experiment_file, chosen), on_nodes=True)

    def digest(records):
        prepared = prepared_for(records[0]["num_rounds"])
        return repeated(prepared, order_of(records)).adapter.digest()

    return digest


def slow(client, seconds, others=5.0):
    """Seconds that tasks take where one client's take `seconds`."""

    def takes(request):
        found = client_of(request)
        return 0.0 if found is None else seconds if found == client else others

    return takes


def answers(records):
    return [r for r in records if r["kind"] == "client"]


def test_the_others_do_not_wait_for_a_slow_node_and_its_update_counts_when_it_comes(
    live, run_of_order
):
    grid = FakeGrid(*OWNERS, seconds=slow(3, 22.0))
    records = live(grid, "rounds=6")
    steps = order_of(records)
    assert [len(steps[number]) for number in range(1, 7)] == [2] * 6
    late = [r for r in answers(records) if r["client"] == 3]
    assert late[0]["round"] >= 3
    assert late[0]["staleness"] == late[0]["round"] - 1
    assert {r["status"] for r in answers(records)} == {"ok"}
    # Six steps of two updates from three clients at 5 s each; by rounds it would have been 6 x 22.
    assert grid.clock.now < 35
    assert records[-1]["adapter_sha256"] == run_of_order(records)


def test_another_order_is_another_run(live, run_of_order, tmp_path):
    fast = live(FakeGrid(*OWNERS), folder=tmp_path / "fast")
    held = live(FakeGrid(*OWNERS, seconds=slow(1, 12.0)), folder=tmp_path / "held")
    assert order_of(fast) != order_of(held)
    assert fast[-1]["adapter_sha256"] != held[-1]["adapter_sha256"]
    assert held[-1]["adapter_sha256"] == run_of_order(held)


def test_a_failure_is_recorded_and_takes_no_place_in_the_buffer(live, run_of_order):
    def tired(request, reply):
        bad = client_of(request) == 2 and '"round": 1' in request.content["config"]["scalars"]
        return Error(2, "tired") if bad else reply

    grid = FakeGrid(*OWNERS, spoil=tired, seconds=slow(2, 1.0))
    records = live(grid, "quorum=1")
    (failed,) = [r for r in answers(records) if r["status"] == "failed"]
    assert (failed["client"], failed["round"]) == (2, 1)
    assert "tired" in failed["reason"]
    assert [len(updates) for updates in order_of(records).values()] == [2] * 4
    # It is not asked again before the next step, and then it is.
    rounds = tasks_of(grid, 2)
    assert len(rounds) == len(set(rounds)) > 1
    (first,) = [r for r in records if r["kind"] == "round" and r["round"] == 1]
    assert (first["clients"], first["failed"]) == (3, 1)
    assert records[-1]["adapter_sha256"] == run_of_order(records)


def test_a_late_answer_never_counts_and_its_client_waits_until_its_node_is_idle(live, caplog):
    grid = FakeGrid(*OWNERS, seconds=slow(1, 31.0))
    records = live(grid, "rounds=8", task_seconds=10.0)
    of_slow = [r for r in answers(records) if r["client"] == 1]
    assert {r["code"] for r in of_slow} == {"late"}
    assert "dropped the answer of node 101 to client 1's task of round 1" in caplog.text
    assert len(tasks_of(grid, 1)) <= 1 + grid.clock.now // 31


def test_a_node_that_dies_does_its_task_again_while_others_go_on(live, run_of_order):
    grid = FakeGrid(*OWNERS, seconds=slow(0, 8.0))
    grid.clock.at(6.0, lambda: grid.configs.pop(100))

    def back():
        grid.configs[100], grid.idle_at[100] = OWNERS[0], 0.0

    grid.clock.at(12.0, back)
    records = live(grid, "rounds=6")
    assert {r["status"] for r in answers(records)} == {"ok"}
    tasks = tasks_of(grid, 0)
    assert tasks[0] == tasks[1]
    assert 0 in [client for updates in order_of(records).values() for client, _ in updates]
    assert records[-1]["adapter_sha256"] == run_of_order(records)


def test_crashes_are_counted_task_by_task(live):
    died = Counter()

    def crash(request, reply):
        if client_of(request) != 1 or died[sent := request.content["config"]["scalars"]] == 2:
            return reply
        died[sent] += 1
        return Error(8, "ClientApp stopped responding")

    records = live(FakeGrid(*OWNERS, spoil=crash, seconds=slow(1, 1.0)))
    assert len(died) > 1
    assert {r["status"] for r in answers(records)} == {"ok"}


def test_a_step_that_nobody_can_fill_takes_what_there_is_and_says_so(live, run_of_order):
    def tired(request, reply):
        return Error(2, "tired") if client_of(request) == 2 else reply

    grid, whole = FakeGrid(*OWNERS, spoil=tired), "aggregation.buffer_size=4"
    with pytest.warns(FedMoEWarning, match="3 updates in place of 4: every other client has fail"):
        records = live(grid, whole, "rounds=2", "quorum=.75")
    assert [len(updates) for updates in order_of(records).values()] == [3, 3]
    assert records[-1]["adapter_sha256"] == run_of_order(records)
    with (
        pytest.warns(FedMoEWarning, match="3 updates in place of 4"),
        pytest.raises(FedMoEError, match=r"3 of 4 clients .* quorum 0.8 needs 4.*tired"),
    ):
        live(FakeGrid(*OWNERS, spoil=tired), whole, "quorum=.8")


def test_without_any_node_a_step_ends_with_an_error_after_a_bounded_wait(live):
    grid = FakeGrid(*OWNERS, seconds=slow(0, 50.0, others=50.0))
    grid.clock.at(120.0, grid.configs.clear)
    with pytest.raises(FedMoEError, match=r"(every client failed|no client is at work)"):
        live(grid, "rounds=9", node_seconds=20.0)
    assert grid.clock.now < 120 + 3 * 20


def test_a_node_that_comes_late_gets_tasks_as_soon_as_it_is_there(live, run_of_order):
    grid = FakeGrid(*OWNERS[:3], seconds=slow(None, 5.0))
    grid.clock.at(7.0, lambda: grid.configs.update({103: OWNERS[3]}))
    records = live(grid, "rounds=6", num_nodes=2)
    assert '"round": 2' in tasks_of(grid, 3)[0]
    assert records[-1]["adapter_sha256"] == run_of_order(records)


class Killed(BaseException):
    """The server's death."""


def test_killed_and_resumed_it_sends_again_what_was_at_work_and_ends_with_the_same_bits(
    live, run_of_order, tmp_path, monkeypatch
):
    """Client 3's update is of version 0 throughout, and arrives in the server's second life."""
    wanted = live(FakeGrid(*OWNERS, seconds=slow(3, 12.0)), folder=tmp_path / "whole")
    assert order_of(wanted)[3] == [(1, 1), (3, 0)]
    grid, left = FakeGrid(*OWNERS, seconds=slow(3, 12.0)), {1: 1.0, 3: 2.0}

    def takes(request):
        return 0.0 if client_of(request) is None else left.pop(client_of(request), 5.0)

    again = FakeGrid(*OWNERS, seconds=takes)
    with killed_after(2, monkeypatch):
        live(grid, folder=tmp_path / "died")
    records = live(again, folder=tmp_path / "died", resume="auto")
    assert tasks_of(again, 3)[0] == tasks_of(grid, 3)[0]
    assert order_of(records) == order_of(wanted)
    assert records[-1]["adapter_sha256"] == wanted[-1]["adapter_sha256"] == run_of_order(wanted)


def tasks_of(grid, client):
    """What a client was sent, task by task."""
    return [m.content["config"]["scalars"] for m in grid.sent if client_of(m) == client]


@contextmanager
def killed_after(round, monkeypatch):
    """The server dies once a round is written down."""

    def finished(self, state):
        if state.round == round:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fedmoe.runs.session.ServerKiller.finished", finished)
        with pytest.raises(Killed):
            yield


def test_after_a_crash_a_node_still_at_the_dead_runs_task_keeps_its_job(
    live, run_of_order, tmp_path, monkeypatch
):
    grid = FakeGrid(*OWNERS, seconds=slow(3, 1000.0))
    with killed_after(1, monkeypatch):
        live(grid, folder=tmp_path)
    again = FakeGrid(*OWNERS, seconds=slow(None, 5.0))
    again.idle_at[103] = 40.0
    records = live(again, "rounds=4", folder=tmp_path, resume="auto", num_nodes=3, node_seconds=6.0)
    assert {r["status"] for r in answers(records)} == {"ok"}
    assert again.clock.now < 40
    assert records[-1]["adapter_sha256"] == run_of_order(records)


def test_what_cannot_go_by_real_time_is_refused(experiment_file, tmp_path):
    chosen = [*BUFFERED, f"simulation.folder={tmp_path}"]
    with pytest.raises(ConfigError, match="goes by the virtual time"):
        run(load_experiment(experiment_file, chosen))
    with pytest.raises(ConfigError, match="faults: slow would delay the server"):
        prepare(load_experiment(experiment_file, [*chosen, "faults=slow=3x"]), on_nodes=True)

"""Nodes that are killed and back before the server looks, and uploads that are cut short."""

import pytest
from fake_grid import FakeGrid, client_of
from flwr.app import Error

from fedmoe.deploy.app import TRIES
from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure
from fedmoe.rounds import plan_round
from server.round import MOST_CRASHES
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")


@pytest.fixture(scope="module")
def tasks(prepared):
    """The first round's, all four clients'."""
    return plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )


def over(grid, prepared, **settings):
    return GridTransport(grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock)


def codes(answers):
    return [answer.code if isinstance(answer, Failure) else "ok" for answer in answers]


def takes(request):
    return 1.0 if client_of(request) is None else 50.0


def test_a_node_that_is_back_at_once_does_its_task_again(prepared, known, tasks):
    """Flower says nothing of it: the task is gone, and was waited for until its time was over."""
    grid = FakeGrid({}, known=known, seconds=takes)
    grid.clock.at(7.0, lambda: grid.restart(100))
    assert codes(over(grid, prepared)(tasks)) == ["ok"] * 4
    assert grid.clients_of(0) == [None, 0, None, 0, 1, 2, 3]
    assert grid.clock.now == pytest.approx(209.0, abs=5.0)


def test_a_task_that_had_not_been_delivered_is_not_done_twice(prepared, known, tasks):
    grid = FakeGrid({}, known=known, seconds=takes)
    grid.clock.at(7.0, lambda: grid.activated.update({100: "later"}))
    assert codes(over(grid, prepared)(tasks)) == ["ok"] * 4
    assert grid.clients_of(0) == [None, 0, None, 1, 2, 3]


def test_a_node_may_die_again_and_again(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known, seconds=takes)
    for seconds in (7.0, 20.0, 60.0, 61.0):
        grid.clock.at(seconds, lambda: grid.restart(100))
    assert codes(over(grid, prepared, node_seconds=30.0)(tasks)) == ["ok"] * 4


@pytest.mark.parametrize(("times", "code"), [(1, "ok"), (2, "ok"), (3, "failed")])
def test_an_upload_that_was_cut_short_is_made_again(prepared, known, tasks, times, code):
    """Flower has heard of the reply and does not have all of it."""
    cut = []

    def spoil(request, reply):
        if client_of(request) != 1 or len(cut) == times:
            return reply
        cut.append(request)
        return Error(3, "Reply message objects are unavailable")

    grid = FakeGrid({}, known=known, seconds=takes, spoil=spoil)
    answers = list(over(grid, prepared)(tasks))
    assert codes(answers) == ["ok", code, "ok", "ok"]
    assert len(cut) == times


def test_after_a_crash_nodes_that_are_still_at_the_dead_runs_tasks_are_waited_for(
    prepared, known, tasks, caplog
):
    caplog.set_level("INFO", logger="flwr")
    grid = FakeGrid({}, {}, known=known, seconds=takes)
    grid.idle_at = {100: 290.0, 101: 250.0}
    transport = over(grid, prepared, num_nodes=2, task_seconds=600.0)
    assert codes(transport(tasks)) == ["ok"] * 4
    assert grid.clock.now == pytest.approx(290.0 + 1 + 2 * 50, abs=5.0)
    said = "waiting for node 100 and node 101, which may be at work on an older task"
    assert caplog.text.count("at work on an older task") == caplog.text.count(said) == 1


def test_a_silent_node_is_waited_for_no_longer_than_a_task_may_take(prepared, tasks):
    grid = FakeGrid({}, seconds=takes)
    grid.idle_at[100] = 1e9
    with pytest.raises(FedMoEError, match=r"(?s)0 usable node\(s\) after 300 s.*who it is"):
        next(over(grid, prepared, task_seconds=300.0)(tasks))
    assert grid.clock.now == pytest.approx(300.0, abs=1.0)


def test_a_node_that_is_not_there_is_not_waited_for_as_long(prepared, known, tasks):
    grid = FakeGrid({}, {}, known=known, seconds=takes)
    grid.idle_at[101] = 1e9
    with pytest.raises(FedMoEError, match=r"1 usable node\(s\) after 120 s; expected 3"):
        next(over(grid, prepared, num_nodes=3)(tasks))
    assert grid.clock.now == pytest.approx(120.0, abs=1.0)


def test_a_deployments_round_has_time_for_every_try():
    assert TRIES == MOST_CRASHES

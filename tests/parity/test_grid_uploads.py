"""Replies whose upload does not end: they hold up nothing but themselves."""

from threading import Event

import pytest
from fake_grid import FakeGrid, client_of

from fedmoe.messages.records import Failure
from fedmoe.rounds import plan_round
from server.pulls import MOST_CALLS, Pulls
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")

HELD = 1
"""The client whose upload does not end."""


class SlowUpload(FakeGrid):
    """A call that asks for one client's finished reply comes back when `release` is set."""

    def __init__(self, *configs, error=None, **more):
        super().__init__(*configs, **more)
        self.error, self.blocked, self.release = error, Event(), Event()
        self.meanwhile = []
        """The messages that were requested while the call hung."""

    def pull_messages(self, message_ids):
        if self.blocked.is_set() and not self.release.is_set():
            self.meanwhile += message_ids
        with self.one_at_a_time:
            held = [n for n in message_ids if self.is_held(n)]
        if held:
            self.blocked.set()
            assert self.release.wait(60)
            if self.error:
                raise self.error
        return super().pull_messages(message_ids)

    def is_held(self, name):
        message = self.open.get(name)  # a call on another thread may take it at any moment
        if message is None:
            return False
        return client_of(message) == HELD and self.done_at[name] <= self.clock.now


@pytest.fixture(scope="module")
def tasks(prepared):
    """The first round's, all four clients'."""
    return plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )


def over(grid, prepared, monkeypatch, **settings):
    """A transport that goes on, as in earnest, while a call hangs, and waits for every other."""
    transport = GridTransport(
        grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock
    )
    pulls = transport.nodes.post.pulls
    pulls.patience = 0.01

    def wait(pull):
        while not pull.ended.wait(0.01):
            hangs = grid.blocked.is_set() and not grid.release.is_set()
            if hangs and any(map(grid.is_held, pull.numbers)):
                return

    monkeypatch.setattr(pulls, "_wait", wait)
    return transport


def ended(transport):
    """Wait for the calls that hung."""
    for pull in transport.nodes.post.pulls.under_way:
        assert pull.ended.wait(60)


def codes(answers):
    return [answer.code if isinstance(answer, Failure) else "ok" for answer in answers]


def takes(request):
    return 0.0 if client_of(request) is None else 5.0


def test_a_round_ends_at_its_deadline_while_a_reply_is_on_its_way(
    prepared, known, tasks, monkeypatch, caplog
):
    grid = SlowUpload({}, {}, known=known, seconds=takes)
    transport = over(grid, prepared, monkeypatch, round_seconds=30.0)
    answers = list(transport(tasks))
    assert codes(answers) == ["ok", "late", "ok", "ok"]
    assert grid.clock.now == pytest.approx(30.0, abs=1.0)
    grid.release.set()
    ended(transport)
    assert codes(transport(tasks)) == ["ok"] * 4
    assert caplog.text.count("dropped the answer of node 101 to client 1's task of round 1") == 1
    assert len(transport.nodes.post.pulls.under_way) == 0


def test_an_upload_that_ends_in_time_counts(prepared, known, tasks, monkeypatch):
    grid = SlowUpload({}, {}, known=known, seconds=takes)
    transport = over(grid, prepared, monkeypatch, round_seconds=30.0)
    grid.clock.at(20.0, lambda: (grid.release.set(), ended(transport)))
    assert codes(transport(tasks)) == ["ok"] * 4
    assert grid.clock.now == pytest.approx(20.0, abs=1.0)


def test_no_message_is_asked_for_in_two_calls_at_a_time(prepared, known, tasks, monkeypatch):
    grid = SlowUpload({}, {}, known=known, seconds=takes)
    list(over(grid, prepared, monkeypatch, round_seconds=30.0)(tasks))
    (held,) = [name for name in [*grid.open] if grid.is_held(name)]
    grid.release.set()
    assert len(set(grid.meanwhile)) > 1
    assert held not in grid.meanwhile


def test_what_flower_raises_in_a_call_that_hung_reaches_the_run(
    prepared, known, tasks, monkeypatch
):
    class Stopped(BaseException):
        """As flwr's own for a run that was stopped."""

    grid = SlowUpload({}, {}, known=known, seconds=takes, error=Stopped())
    transport = over(grid, prepared, monkeypatch, round_seconds=30.0)
    assert codes(transport(tasks))[HELD] == "late"
    grid.release.set()
    ended(transport)
    with pytest.raises(Stopped):
        list(transport(tasks))


def test_many_messages_are_asked_for_in_few_calls():
    class Counting:
        calls = ()

        def pull_messages(self, message_ids):
            self.calls += (tuple(message_ids),)
            return list(message_ids)

    grid, numbers = Counting(), [str(number) for number in range(3 * MOST_CALLS + 1)]
    assert sorted(Pulls(grid, None).replies(numbers)) == sorted(numbers)
    assert len(grid.calls) == MOST_CALLS
    grid.calls = ()
    assert Pulls(grid, None).replies(["a", "b"]) == ["a", "b"]
    assert grid.calls == (("a",), ("b",))
    assert Pulls(grid, None).replies([]) == []

"""Replies fetched from Flower, so that one whose upload is slow holds up nothing but itself.

`pull_messages` of flwr 1.41 takes a reply as soon as the SuperLink has heard of it, and comes back
only when all of it is there, up to two hours later (its `PULL_MAX_TIME`), with whatever other
replies it had taken. So each call has a thread of its own and few messages, and whoever asks waits
a moment, then goes on; what comes is taken at a later look.

flwr's own heartbeat and log sender use the grid's connection from other threads, as do the threads
by which it fetches the parts of a message; what it keeps for one call is per thread. So a call may
be under way while messages are sent. No message is asked for in two calls at a time: one that was
taken by the first would be said to be lost in the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event, Thread

from flwr.app import Message
from flwr.serverapp import Grid

MOST_CALLS = 16
"""Calls by which all messages that are out are asked for, with no upload under way: one each where
there are no more, and with more no great load for the SuperLink's database."""


class Pull:
    """One call for the replies to some messages."""

    def __init__(self, grid: Grid, numbers: Sequence[str]) -> None:
        self.grid, self.numbers = grid, numbers
        self.ended = Event()
        self.replies: list[Message] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call Flower, and keep what comes of it for whoever asks."""
        try:
            self.replies = list(self.grid.pull_messages(self.numbers))
        except BaseException as error:  # flwr's "this run was stopped" is no `Exception`
            self.error = error
        self.ended.set()


class Pulls:
    """The calls under way."""

    def __init__(self, grid: Grid, patience: float | None) -> None:
        """Wait `patience` seconds of real time for a new call; None waits until it has ended."""
        self.grid, self.patience = grid, patience
        self.under_way: list[Pull] = []

    def replies(self, numbers: Sequence[str]) -> list[Message]:
        """Return what has arrived for these messages, and for those of earlier looks.

        Raises:
            BaseException: what Flower raised in a call.
        """
        asked = {number for pull in self.under_way for number in pull.numbers}
        free = [number for number in numbers if number not in asked]
        for first in range(min(MOST_CALLS, len(free))):
            pull = Pull(self.grid, free[first::MOST_CALLS])
            self.under_way.append(pull)
            self._begin(pull)
        ended = [pull for pull in self.under_way if pull.ended.is_set()]
        self.under_way = [pull for pull in self.under_way if pull not in ended]
        for error in (pull.error for pull in ended if pull.error):
            raise error
        return [reply for pull in ended for reply in pull.replies]

    def _begin(self, pull: Pull) -> None:
        """One call after another, but for those that take long."""
        if self.patience is None:
            pull.run()
            return
        # A daemon, which no end of the process waits for: Flower closes its connection then, and
        # the call fails.
        Thread(target=pull.run, name="pull", daemon=True).start()
        self._wait(pull)

    def _wait(self, pull: Pull) -> None:
        pull.ended.wait(self.patience)

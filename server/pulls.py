"""The fetching of replies from Flower, such that a slow upload delays only itself.

`pull_messages` of flwr 1.41 takes a reply as soon as the SuperLink knows of it, and returns only
when all of it has arrived, up to two hours later (its `PULL_MAX_TIME`), with the other replies that
it had taken. So each call has a separate thread and few messages; the caller waits a moment, then
continues, and takes the reply at a later look.

flwr's heartbeat and log sender use the grid's connection from other threads, as do the threads
that fetch the parts of a message; its state of a call is per thread. So a call may run while
messages are sent. No two calls ask for the same message: the second would report as lost what the
first has taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event, Thread

from flwr.app import Message
from flwr.serverapp import Grid

MOST_CALLS = 16
"""Calls that share the messages in flight, as long as no upload is slow: one each for few messages,
and for many no great load on the SuperLink's database."""


class Pull:
    """One call for the replies to some messages."""

    def __init__(self, grid: Grid, numbers: Sequence[str]) -> None:
        self.grid, self.numbers = grid, numbers
        self.ended = Event()
        self.replies: list[Message] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call Flower, and keep the result or the error."""
        try:
            self.replies = list(self.grid.pull_messages(self.numbers))
        except BaseException as error:  # flwr's "this run was stopped" is no `Exception`
            self.error = error
        self.ended.set()


class Pulls:
    """The calls that have not ended."""

    def __init__(self, grid: Grid, patience: float | None) -> None:
        """Wait `patience` seconds of real time for a new call; None waits until it has ended."""
        self.grid, self.patience = grid, patience
        self.under_way: list[Pull] = []

    def replies(self, numbers: Sequence[str]) -> list[Message]:
        """Return the replies to these messages, and to those of earlier looks.

        Raises:
            BaseException: as Flower raised it in a call.
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
        """Make a call, and wait for it unless it takes long."""
        if self.patience is None:
            pull.run()
            return
        # A daemon: the process ends without it, as Flower closes its connection and the call fails.
        Thread(target=pull.run, name="pull", daemon=True).start()
        self._wait(pull)

    def _wait(self, pull: Pull) -> None:
        pull.ended.wait(self.patience)

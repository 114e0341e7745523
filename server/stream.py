"""The transport of an asynchronous run: tasks go out at any time, answers are kept as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from logging import INFO

from fedmoe.messages.records import Failure, Task, Update
from server.private import log
from server.round import Round
from server.transport import GridTransport


class GridStream(GridTransport):
    """Clients on Flower's nodes, each with its own pace; see `runs.workers.Stream`."""

    @cached_property
    def round(self) -> Round:
        """The tasks under way; the first use waits for nodes.

        Raises:
            FedMoEError: too few nodes.
        """
        self.nodes.wait()
        return Round(
            [], self.nodes, self.server, self.settings, self._content, self.places, patient=True
        )

    @cached_property
    def kept(self) -> dict[int, Update | Failure]:
        """By client: answers that have arrived, until they are asked for."""
        return {}

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield the kept answers to these tasks, in order."""
        for task in tasks:
            yield self.kept.pop(task.client)
        self.kept.clear()  # the rest was struck by `faults`

    def begin(self, task: Task) -> None:
        """Send a task, or keep it until its node is back."""
        self.round.add(task)
        self.round.send()

    def next(self) -> Update | Failure | None:
        """Return the answer that arrived next; None if none has within a moment."""
        if not self.round.answers:
            self.round.look()
        if not self.round.answers:
            return None
        answer = self.round.take(next(iter(self.round.answers)))
        self.kept[answer.client] = answer
        what = "failure" if isinstance(answer, Failure) else "update"
        log(
            INFO,
            "client %d: its %s of round %d has arrived; %d others are at work",
            answer.client,
            what,
            answer.round,
            len(self.round.out),
        )
        return answer

    def reachable(self, client: int) -> bool:
        """Return whether a node is idle that may take a task of this client."""
        round = self.round
        return bool(round.idle(self.nodes.serving(client), round.may_move))

    def wait(self, clients: Sequence[int]) -> bool:
        """Wait until one of the clients is reachable; False if none is for long, or none is given.

        As before a round, a silent node is waited for up to `task_seconds`.
        """
        assert not self.round.out, self.round.out
        clock, settings = self.nodes.post.clock, self.settings
        start = clock.monotonic()
        while clients:
            if any(self.reachable(client) for client in clients):
                return True
            waited = clock.monotonic() - start
            silent = any(n in self.nodes.busy or n in self.nodes.fresh for n in self.nodes.present)
            if waited >= max(settings.node_seconds, settings.task_seconds * silent):
                return False
            self.round.hear()
        return False

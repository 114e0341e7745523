"""The transport of an asynchronous run: tasks go out at any time, answers are kept as they come."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, partial
from logging import INFO

from flwr.app import MessageType

from fedmoe.messages.records import Failure, Task, Update
from fedmoe.messages.scores import Scores
from fedmoe.rounds import Member
from fedmoe.runs.own_scores import read_scores
from server.private import log
from server.round import Exchange, Round
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
            [], self.nodes, self.server, self.settings, self.content, self.places, patient=True
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

    def score(self, tasks: Sequence[Task], split: str) -> Iterator[Scores | Failure]:
        """Yield what the clients score on their own rows whose nodes are idle, in order.

        Nobody waits for a client that is at work: it gives no scores this time.
        """
        at_work = {*self.round.out.values()}
        idle = [t for t in tasks if {*self.nodes.serving(t.client, t.name)} - at_work]
        scoring = Round(
            idle,
            self.nodes,
            self.server,
            self.settings,
            partial(self.content, split=split),
            self.places,
            exchange=Exchange(MessageType.EVALUATE, partial(read_scores, self.server, split=split)),
        )
        while any(task.client not in scoring.answers for task in idle):
            scoring.send()
            for item in self.nodes.look():
                (self.round if item.letter.client in self.round.out else scoring).take_in(item)
            scoring.give_up()
        for task in tasks:
            busy = Failure(task.round, task.client, "its node is at work on a task", "busy")
            yield scoring.answers.get(task.client, busy)

    def present(self, wanted: Collection[str], least: int, seconds: float) -> Collection[str]:
        """Return the clients whose rows are on nodes that are there, at work or not."""
        start, clock = self.round.clock.monotonic(), self.round.clock
        while True:
            there = self.nodes.clients()
            waited = clock.monotonic() - start >= seconds
            if waited or ({*wanted} <= {*there} and len(there) >= least):
                return there
            self.round.hear()

    def reachable(self, member: Member) -> bool:
        """Return whether a node is idle that may take a task of this client."""
        round = self.round
        return bool(round.idle(self.nodes.serving(member.client, member.name), round.may_move))

    def wait(self, members: Sequence[Member]) -> bool:
        """Wait until one of the clients is reachable; False if none is for long, or none is given.

        As before a round, a silent node is waited for up to `task_seconds`.
        """
        assert not self.round.out, self.round.out
        clock, settings = self.nodes.post.clock, self.settings
        start = clock.monotonic()
        while members:
            if any(self.reachable(member) for member in members):
                return True
            waited = clock.monotonic() - start
            silent = any(n in self.nodes.busy or n in self.nodes.fresh for n in self.nodes.present)
            if waited >= max(settings.node_seconds, settings.task_seconds * silent):
                return False
            self.round.hear()
        return False

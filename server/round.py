"""Tasks on the nodes, a round's or a stream of them: where each one is, and whether it is late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MessageType, RecordDict

from fedmoe.errors import WireError
from fedmoe.messages.records import Failure, Message, Task, Update
from fedmoe.runs.server_side import ServerSide
from server.messages import read_update
from server.nodes import Nodes
from server.post import Arrived
from server.settings import Settings

AHEAD = 2
"""Tasks per node that may always be sent ahead of the oldest open one."""
MOST_CRASHES = 3
"""Crashes that end a client's round: one may have any cause, three are the task's fault."""
LEFT = "its node, which alone has its keys for this round, has left"
MOST_WAITING_BYTES = 2 * 2**30
"""Memory of updates that wait for an older one; beyond it, nothing more is sent ahead. With less,
one slow node would delay all others."""


@dataclass(frozen=True)
class Exchange:
    """What clients are asked, and how their answers are read."""

    kind: str
    """Flower's type of message."""
    read: Callable[[Message, Task], Any]
    """Returns a checked answer; a WireError refuses it."""
    repeats: bool = True
    """Whether a node, the same or another, gives the same answer if it is asked again."""


class Round:
    """Places one task at a time on each node, until all are answered or the time is over."""

    def __init__(
        self,
        tasks: Iterable[Task],
        nodes: Nodes,
        server: ServerSide,
        settings: Settings,
        content: Callable[[Task], RecordDict],
        places: dict[int, str],
        patient: bool = False,
        exchange: Exchange | None = None,
        pinned: Mapping[int, int] | None = None,
    ) -> None:
        """Start the tasks' clock.

        Args:
            tasks: by client id, one for a client; `add` takes more.
            nodes: the nodes that are present.
            server: the run, which reads updates.
            settings: the timeouts.
            content: turns a task into a request.
            places: gets, for each client, the node that its task went to last.
            patient: whether a task that no node may serve waits for silent nodes: not where the
                caller has waited for them.
            exchange: what is asked; by default to train.
            pinned: the node that alone can answer, by client.
        """
        self.patient, self.pinned = patient, pinned or {}
        self.exchange = exchange or Exchange(MessageType.TRAIN, server.read)
        self.nodes, self.server, self.settings = nodes, server, settings
        self.content, self.places, self.clock = content, places, nodes.post.clock
        self.tasks: list[Task] = []
        self.waiting: dict[int, Task] = {}
        self.serving: dict[int, list[int]] = {}
        self.ends: dict[int, float] = {}
        """By client: when its task is late, sent or not."""
        self.out: dict[int, int] = {}
        """By client: the node that has its task."""
        self.sent_to: dict[int, int] = {}
        """By client: the node that had its task last."""
        self.answers: dict[int, Any] = {}
        """By client, in the order of arrival: what the exchange reads, or a failure."""
        self.lost: dict[int, tuple[str, float]] = {}
        """By client: why and when its last node failed, if another one may still answer."""
        self.crashes = Counter[int]()
        """By client: how often the process that had its task has crashed."""
        self.unsent: set[tuple[int, int]] = set()
        """Clients and nodes of the messages that Flower did not accept."""
        own = (server.setup.layouts(tier, 1).own for tier in server.setup.top_ks)
        # A client's state between rounds may be stored on its node alone.
        self.may_move = not (
            self.pinned
            or server.setup.experiment.upload.error_feedback
            or any(kept is not None for kept in own)
        )
        self.last_at_work = self.clock.monotonic()
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Take a task, which is late after `round_seconds`; its client has no other."""
        client = task.client
        assert client not in self.ends, client
        self.tasks.append(task)
        self.waiting[client] = task
        self.serving[client] = self._serving(task)
        self.ends[client] = self.clock.monotonic() + self.settings.round_seconds

    def run(self) -> Iterator[Any]:
        """Yield one answer per task, in order."""
        for number, task in enumerate(self.tasks):
            while task.client not in self.answers:
                self.send(number)
                if task.client in self.answers:
                    break
                self.hear()
                self._give_up([task])
            yield self.answers.pop(task.client)

    def send(self, oldest: int = 0) -> None:
        """Send what idle nodes can take; `oldest` is the index of the first open task."""
        updates = (a for a in self.answers.values() if isinstance(a, Update))
        sizes = (max(update.delta.flat.nbytes, update.num_bytes) for update in updates)
        full = sum(sizes) > MOST_WAITING_BYTES
        most = AHEAD * len(self.nodes.present) if full else len(self.tasks)
        for any_node in (False, True) if self.may_move else (False,):
            for task in self.tasks[oldest : oldest + max(1, most)]:
                if task.client in self.waiting:
                    self._place(task, any_node)

    def look(self) -> None:
        """Send, hear and give up once, for tasks that wait for no order."""
        self.send()
        if not self.answers:
            self.hear()
            self.give_up()

    def take(self, client: int) -> Update | Failure:
        """Return an answer, and forget its task: the client may be given another."""
        self.tasks = [task for task in self.tasks if task.client != client]
        self.unsent = {pair for pair in self.unsent if pair[0] != client}
        for found in (self.serving, self.ends, self.lost, self.crashes):
            found.pop(client, None)
        return self.answers.pop(client)

    def hear(self) -> None:
        """Take the answers that have arrived; wait a moment if none has."""
        for item in self.nodes.look():
            self.take_in(item)

    def _place(self, task: Task, any_node: bool) -> None:
        """Send a task to the first of its nodes that is not busy, if it has no other task.

        With `any_node`, another node without a task takes it rather than stay idle.
        """
        client = task.client
        here = [node for node in self.serving[client] if node in self.nodes.known]
        now = self.clock.monotonic()
        if not here:
            # A killed node soon starts again, and may be the only one with the client's data.
            nobody = LEFT if self.pinned else self.nodes.nobody(client, task.name)
            reason, since = self.lost.setdefault(client, (nobody, now))
            soon = now - since < self.settings.node_seconds and not self.pinned
            if self.serving[client] and soon:
                return
            # It may have come back under another id: without keys Flower gives it a new one.
            self.serving[client] = self._others(task)
            if not self.serving[client] and not (self.patient and (soon or self._silent())):
                self._fail(task, reason, "failed")
            return
        left = self.ends[client] - now
        idle = self.idle(here, any_node)
        if not idle or left <= 0:
            return
        node = idle[0]
        self.out[client] = self.sent_to[client] = node
        self.places[client] = self.nodes.label(node)
        about = f"{task.who}'s task of round {task.round}"
        seconds = min(self.settings.task_seconds, left)
        self.nodes.post.send(
            node, self.exchange.kind, self.content(self.waiting.pop(client)), about, seconds, client
        )

    def idle(self, serving: Sequence[int], any_node: bool) -> list[int]:
        """Return those of a client's nodes that could take its task now."""
        fit = [node for node in serving if node not in self.nodes.busy]
        return [n for n in (fit if any_node else fit[:1]) if n not in self.out.values()]

    def take_in(self, item: Arrived) -> None:
        """Take the answer to a task that is out."""
        client = item.letter.client
        task = next(task for task in self.tasks if task.client == client)
        node = self.out.pop(task.client)
        assert node == item.letter.node, (node, item.letter)
        self.last_at_work = self.clock.monotonic()
        answer = item.answer
        if isinstance(answer, RecordDict):
            try:
                self.answers[task.client] = self.exchange.read(read_update(answer), task)
            except WireError as error:
                self._fail(task, f"{self.places[task.client]}: {error}", error.code)
            return
        reason = f"{self.places[task.client]}: {answer.reason}"
        self.crashes[task.client] += answer.code == "crashed"
        repeats = self.exchange.repeats and answer.code in ("gone", "unsent", "crashed")
        if repeats and self.crashes[task.client] < MOST_CRASHES:
            # The task is repeatable: any node, the same one included, gives the same update.
            if answer.code == "unsent":
                self.unsent.add((task.client, node))
                self.serving[task.client].remove(node)
            self.lost[task.client] = reason, self.last_at_work
            self.waiting[task.client] = task
        else:
            self._fail(task, reason, "failed" if answer.code == "crashed" else answer.code)

    def _others(self, task: Task) -> list[int]:
        """Return the nodes that may serve a client, except those that got no message through."""
        return [n for n in self._serving(task) if (task.client, n) not in self.unsent]

    def _serving(self, task: Task) -> list[int]:
        """Return the nodes that may serve a client now."""
        if not self.pinned:
            return self.nodes.serving(task.client, task.name)
        node = self.pinned.get(task.client)
        return [node] if node is not None and node in self.nodes.usable() else []

    def give_up(self) -> None:
        """Give up what is late, or what only busy nodes could take, in no order."""
        self._give_up(list(self.waiting.values()))

    def _give_up(self, oldest: Sequence[Task]) -> None:
        """Fail tasks that were not sent by their end, or oldest ones that only busy nodes serve."""
        now = self.clock.monotonic()
        for task in [t for t in self.waiting.values() if now >= self.ends[t.client]]:
            gone, _ = self.lost.get(task.client, ("", 0.0))
            why = self._busy(task) or gone or "every node had other tasks"
            seconds = f"{self.settings.round_seconds:g} s"
            reason = f"the round's {seconds} were over before it was sent: {why}"
            self._fail(task, reason, "late")
        if self.out:
            self.last_at_work = now
        if now - self.last_at_work < self.settings.node_seconds:
            return
        for task in oldest:
            if task.client in self.waiting and (busy := self._busy(task)):
                self._fail(task, busy, "busy")

    def _silent(self) -> list[int]:
        """Return the nodes that have not said who they are: one may be at work on an older task."""
        nodes = self.nodes
        return [n for n in nodes.present if n not in nodes.known and n not in nodes.refused]

    def _busy(self, task: Task) -> str:
        """Describe the busy nodes of a task; empty if one of its nodes is not busy."""
        here = [node for node in self.serving[task.client] if node in self.nodes.known]
        if not all(node in self.nodes.busy for node in here):
            return ""
        label, busy = self.nodes.label, self.nodes.busy
        return "; ".join(f"{label(n)} is busy with {busy[n]}" for n in here)

    def _fail(self, task: Task, reason: str, code: str) -> None:
        self.waiting.pop(task.client, None)
        self.answers[task.client] = Failure(task.round, task.client, reason, code)

"""One round's tasks on the nodes: who gets which, what came back, and what is late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from flwr.app import MessageType, RecordDict

from fedmoe.errors import WireError
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.runs.server_side import ServerSide
from server.messages import read_update
from server.nodes import Nodes
from server.post import Arrived
from server.settings import Settings

AHEAD = 2
"""Tasks per node that may always be ahead of the oldest open one."""
MOST_CRASHES = 3
"""Deaths of its process that end a client's round: one may be anybody's, three are its own."""
MOST_WAITING_BYTES = 2 * 2**30
"""Memory that updates may take while they wait for an older one; then no more is sent ahead. With
less, one slow node would hold up all others."""


class Round:
    """One task at a time on each node, until all are answered or the round's time is over."""

    def __init__(
        self,
        tasks: Sequence[Task],
        nodes: Nodes,
        server: ServerSide,
        settings: Settings,
        content: Callable[[Task], RecordDict],
        places: dict[int, str],
    ) -> None:
        """Begin the round's time.

        Args:
            tasks: by client id, one for a client.
            nodes: those that are here now.
            server: the run, which reads updates.
            settings: the times.
            content: a task as a request.
            places: is told by client which node its task went to last.
        """
        self.tasks, self.nodes, self.server, self.settings = tasks, nodes, server, settings
        self.content, self.places, self.clock = content, places, nodes.post.clock
        self.waiting = {task.client: task for task in tasks}
        self.serving = {task.client: nodes.serving(task.client) for task in tasks}
        self.out: dict[int, int] = {}
        """By client the node that its task is at."""
        self.answers: dict[int, Update | Failure] = {}
        self.lost: dict[int, tuple[str, float]] = {}
        """By client why its last node gave no answer, where another one may, and when."""
        self.crashes = Counter[int]()
        """By client how often the process that had its task has died."""
        self.unsent: set[tuple[int, int]] = set()
        """Clients and nodes: a message that Flower did not take."""
        own = (server.setup.layouts(tier, 1).own for tier in server.setup.top_ks)
        # What a client keeps between rounds may lie on its node alone.
        self.may_move = not (
            server.setup.experiment.upload.error_feedback or any(kept is not None for kept in own)
        )
        self.last_at_work = self.clock.monotonic()
        self.end = self.last_at_work + settings.round_seconds

    def run(self) -> Iterator[Update | Failure]:
        """One answer per task, in their order."""
        for number, task in enumerate(self.tasks):
            while task.client not in self.answers:
                self._send(number)
                if task.client in self.answers:
                    break
                for item in self.nodes.look():
                    self._hear(item)
                self._give_up(task)
            yield self.answers.pop(task.client)

    def _send(self, oldest: int) -> None:
        """Send what idle nodes can take; `oldest` is the place of the first open task."""
        updates = (a for a in self.answers.values() if isinstance(a, Update))
        full = sum(update.delta.flat.nbytes for update in updates) > MOST_WAITING_BYTES
        most = AHEAD * len(self.nodes.present) if full else len(self.tasks)
        for any_node in (False, True) if self.may_move else (False,):
            for task in self.tasks[oldest : oldest + max(1, most)]:
                if task.client in self.waiting:
                    self._place(task, any_node)

    def _place(self, task: Task, any_node: bool) -> None:
        """Send a task to the first of its nodes that is not busy, if that has no other task.

        With `any_node` another that has none takes it: it would have nothing to do.
        """
        client = task.client
        here = [node for node in self.serving[client] if node in self.nodes.known]
        now = self.clock.monotonic()
        if not here:
            # A node that was killed is soon started again, and a client's data may lie there alone.
            reason, since = self.lost.setdefault(client, (self.nodes.nobody(client), now))
            if self.serving[client] and now - since < self.settings.node_seconds:
                return
            # It may have come back under another number: without keys Flower gives it a new one.
            self.serving[client] = self._others(client)
            if not self.serving[client]:
                self._fail(task, reason, "failed")
            return
        left = self.end - now
        fit = [node for node in here if node not in self.nodes.busy]
        idle = [n for n in (fit if any_node else fit[:1]) if n not in self.out.values()]
        if not idle or left <= 0:
            return
        node = idle[0]
        self.out[client] = node
        self.places[client] = self.nodes.label(node)
        about = f"client {client}'s task of round {task.round}"
        seconds = min(self.settings.task_seconds, left)
        self.nodes.post.send(
            node, MessageType.TRAIN, self.content(self.waiting.pop(client)), about, seconds, client
        )

    def _hear(self, item: Arrived) -> None:
        client = item.letter.client
        task = next(task for task in self.tasks if task.client == client)
        node = self.out.pop(task.client)
        assert node == item.letter.node, (node, item.letter)
        self.last_at_work = self.clock.monotonic()
        answer = item.answer
        if isinstance(answer, RecordDict):
            try:
                self.answers[task.client] = self.server.read(read_update(answer), task)
            except WireError as error:
                self._fail(task, f"{self.places[task.client]}: {error}", error.code)
            return
        reason = f"{self.places[task.client]}: {answer.reason}"
        self.crashes[task.client] += answer.code == "crashed"
        again = answer.code in ("gone", "unsent") or answer.code == "crashed"
        if again and self.crashes[task.client] < MOST_CRASHES:
            # The task is repeatable: another node, or the same one anew, gives the same update.
            if answer.code == "unsent":
                self.unsent.add((task.client, node))
                self.serving[task.client].remove(node)
            self.lost[task.client] = reason, self.last_at_work
            self.waiting[task.client] = task
        else:
            self._fail(task, reason, "failed" if answer.code == "crashed" else answer.code)

    def _others(self, client: int) -> list[int]:
        """The nodes that may serve a client now, but for those that could not be written to."""
        return [n for n in self.nodes.serving(client) if (client, n) not in self.unsent]

    def _give_up(self, oldest: Task) -> None:
        """Fail what no node has taken when the round is over, or when only busy ones could."""
        now = self.clock.monotonic()
        if now >= self.end:
            seconds = f"{self.settings.round_seconds:g} s"
            for task in list(self.waiting.values()):
                gone, _ = self.lost.get(task.client, ("", 0.0))
                why = self._busy(task) or gone or "every node had other tasks"
                self._fail(
                    task, f"the round's {seconds} were over before it was sent: {why}", "late"
                )
            return
        if self.out:
            self.last_at_work = now
        waited = now - self.last_at_work >= self.settings.node_seconds
        if waited and oldest.client in self.waiting and (busy := self._busy(oldest)):
            self._fail(oldest, busy, "busy")

    def _busy(self, task: Task) -> str:
        """Which of a task's nodes are busy, and with what; empty where one is not."""
        here = [node for node in self.serving[task.client] if node in self.nodes.known]
        if not all(node in self.nodes.busy for node in here):
            return ""
        nodes = self.nodes
        return "; ".join(f"{nodes.label(n)} is busy with {nodes.busy[n]}" for n in here)

    def _fail(self, task: Task, reason: str, code: str) -> None:
        self.waiting.pop(task.client, None)
        self.answers[task.client] = Failure(task.round, task.client, reason, code)

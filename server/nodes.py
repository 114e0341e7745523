"""The nodes: which are present, fit or busy, and which may serve a client."""

from __future__ import annotations

import json
from logging import INFO, WARNING

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedmoe.errors import FedMoEError, WireError, quoted
from fedmoe.messages.rows import WITHHELD
from server.about import About, Expected
from server.messages import hello_content, read_about
from server.post import Arrived, Lost, Post
from server.private import log
from server.settings import Settings

LOOK_SECONDS = 2.0
"""Between two looks at the nodes that are present, within a round."""
QUESTION = "the question who it is"
NAMELESS = (
    "its key was registered without a name, and another's with one: it could take any name; take "
    "the key back, and register a new one with --name"
)


class Nodes:
    """Asks every node who it is; a node that does not fit gets no task in this run.

    A node that misses a message's deadline may still be at work on it. It gets no other task until
    it has answered something: a SuperNode of Flower 1.41 takes one message at a time, and so it
    answers a question only when it is idle. The question is repeated for the whole run.
    """

    def __init__(self, grid: Grid, post: Post, expected: Expected, settings: Settings) -> None:
        self.grid, self.post, self.expected, self.settings = grid, post, expected, settings
        self.known: dict[int, About] = {}
        """Nodes that fit, in the order of their answers."""
        self.refused: dict[int, str] = {}
        self.busy: dict[int, str] = {}
        """By node: the message that it has missed."""
        self.fresh: set[int] = set()
        """Nodes that have not answered yet."""
        self.registered: dict[int, str] = {}
        """By node: the name that its key was registered with, if it was."""
        self.withheld: dict[str, str] = {}
        """By the word for an owner who withholds its name: the key's name that first used it."""
        self.present: list[int] = []
        self.activated: dict[int, str] = {}
        """By node: when the SuperLink last activated it."""
        self.back: set[int] = set()
        """Nodes that were restarted since, and may have lost their task."""
        self.looked = 0.0
        """When the nodes were last listed."""

    def wait(self) -> None:
        """Wait until enough nodes are present, fit and idle, and every new one has answered.

        A silent node may be at work on a task of this run or of one that was killed. If the number
        cannot be reached without it, it is waited for as long as a task may take.

        Raises:
            FedMoEError: fewer than `num_nodes` after `node_seconds`, or after `task_seconds`.
        """
        settings, start, logged = self.settings, self.post.clock.monotonic(), False
        longest = max(settings.node_seconds, settings.task_seconds)
        while True:
            self._look_round()
            self._ask()
            answers = self.look()
            assert not answers, [item.letter for item in answers]
            idle = [node for node in self.usable() if node not in self.busy]
            waited = self.post.clock.monotonic() - start
            over = waited >= settings.node_seconds
            if len(idle) >= settings.num_nodes and (over or not self.fresh):
                return
            silent = [n for n in self.present if n in self.busy or n in self.fresh]
            hope = len(idle) + len(silent) >= settings.num_nodes
            if over and (not hope or waited >= longest):
                seconds = longest if hope else settings.node_seconds
                raise FedMoEError(self._too_few(len(idle), seconds))
            if over and not logged:
                logged = True
                names = " and ".join(map(self.label, silent))
                log(INFO, "waiting for %s, which may be at work on an older task", names)

    def look(self) -> list[Arrived]:
        """Return the answers to open tasks since the last look; handle all other messages."""
        answers = []
        for item in self.post.arrived():
            if item.late_seconds is not None:
                self._late(item, item.late_seconds)
            elif item.letter.client is None:
                answers += self._learn(item)
            else:
                self._note(item)
                answers.append(item)
        if self.post.clock.monotonic() - self.looked >= LOOK_SECONDS:
            self._look_round()
        self._ask()
        return answers

    def usable(self) -> list[int]:
        """Return the nodes that are present and fit, also busy ones; one for each name."""
        names: set[str] = set()
        present, found = {*self.present}, []
        for node, about in self.known.items():
            if node in present and about.name not in names:
                found.append(node)
                names |= {about.name} - {""}
        return found

    def clients(self) -> list[str]:
        """Return the clients whose own rows are on nodes that are present and fit, by name."""
        return sorted({name for node in self.usable() for name in self.known[node].own})

    def serving(self, client: int, name: str = "") -> list[int]:
        """Return the nodes that may carry out a client's task, the best first.

        They are those that have the rows of the client of that name. Of clients without names:
        those that the run config's `nodes` names for the client; else those that have its data;
        else those that take any client, starting with a different one for each client.
        """
        assigned, usable = self.expected.assigned, sorted(self.usable())
        if name:
            owners = [node for node in usable if name in self.known[node].own]
            first = client % len(owners) if owners else 0
            return owners[first:] + owners[:first]
        if any(client in clients for clients in assigned.values()):
            return [n for n in usable if client in assigned.get(self.known[n].name, ())]
        if owners := [n for n in usable if client in self.known[n].held]:
            return owners
        takers = [
            n for n in usable if not self.known[n].held and self.known[n].name not in assigned
        ]
        first = client % len(takers) if takers else 0
        return takers[first:] + takers[:first]

    def nobody(self, client: int, name: str = "") -> str:
        """Return the reason why no node may carry out a client's task."""
        if name:
            return f"no node has the rows of client {name!r}"
        names = [name for name, clients in self.expected.assigned.items() if client in clients]
        if names:
            return f"client {client} is served by {' or '.join(names)}, which is not here"
        return f"no node has the data of client {client}"

    def label(self, node: int) -> str:
        """Return a node's name for the log and for reasons."""
        about = self.known.get(node)
        return about.name if about and about.name else f"node {node}"

    def _look_round(self) -> None:
        """List the nodes that are present; a killed node comes back under its old id.

        A node that has left is asked again when it is back.
        """
        nodes = list(self.grid.get_nodes())
        self.registered |= {node.node_id: node.name for node in nodes}
        activated = {node.node_id: node.last_activated_at for node in nodes}
        self.back |= {n for n, when in activated.items() if self.activated.get(n, when) != when}
        self.activated |= activated
        self.present = sorted(activated)
        stay = {*self.present, *(letter.node for letter in self.post.out.values())}
        self.known = {node: about for node, about in self.known.items() if node in stay}
        self.refused = {node: why for node, why in self.refused.items() if node in stay}
        self.looked = self.post.clock.monotonic()

    def _ask(self) -> None:
        """Ask new nodes who they are, and busy ones whether they are idle."""
        asked = {letter.node for letter in self.post.out.values() if letter.client is None}
        for node in self.present:
            new = not (node in self.known or node in self.refused or node in self.busy)
            if (new or node in self.busy or node in self.back) and node not in asked:
                self.fresh |= {node} if new else set()
                expected = self.expected
                data = json.dumps(expected.data)
                content = hello_content(expected.code, expected.components, data)
                seconds = self.settings.node_seconds
                self.post.send(node, MessageType.QUERY, content, QUESTION, seconds)

    def _learn(self, item: Arrived) -> list[Arrived]:
        """Note a node's description, and return the tasks that its answer proves to be lost."""
        node, answer = item.letter.node, item.answer
        self.fresh.discard(node)
        if isinstance(answer, Lost) and answer.code in ("late", "gone", "crashed"):
            self._note(item)  # it is asked again
            return []
        self.back.discard(node)
        lost = self.post.forgotten(item.letter)
        was_known, was_busy = node in self.known, self.busy.pop(node, None)
        try:
            if isinstance(answer, Lost):
                raise WireError(answer.reason)
            registered = self.registered.get(node, "")
            if not registered and any(self.registered.values()):
                raise WireError(NAMELESS)
            about = self.expected.check(read_about(answer), registered)
            self._check_rows(node, about)
            self._check_withheld(about, registered)
            self.known[node] = about
        except (WireError, ValueError) as error:  # whatever a node says ends its part, not the run
            self.known.pop(node, None)
            self.refused[node] = quoted(str(error))
            log(WARNING, "node %d gets no tasks: %s", node, error)
            return lost
        if was_busy:
            log(INFO, "%s is responsive again; it missed: %s", self.label(node), was_busy)
        if not was_known:
            log(INFO, "node %d is ready: %s, %s", node, about.name or "without a name", about)
            self._tell_mixed(node, about.processor)
            if clash := self._clash(node):
                log(WARNING, "node %d gets no tasks for now: %s", node, clash)
        return lost

    def _check_rows(self, node: int, about: About) -> None:
        """Refuse a node that has other rows of a client than a node that is here."""
        for other in self.usable():
            there = self.known[other].own
            for name, digest in about.own.items() if other != node else ():
                if there.get(name, digest) != digest:
                    raise WireError(
                        f"it has rows of client {name!r} that differ from those on "
                        f"{self.label(other)}; give each client's rows to one node, or the same "
                        "rows to both"
                    )

    def _check_withheld(self, about: About, registered: str) -> None:
        """Refuse a node that calls its owner as another one does who withholds its name."""
        for name in about.own if registered else ():
            first = self.withheld.setdefault(name, registered)
            if name.startswith(WITHHELD) and first != registered:
                raise WireError(f"it has rows of {name!r}, which {first!r} has told of first")

    def _tell_mixed(self, node: int, processor: str) -> None:
        """Warn of a fleet of several kinds of processor: its run cannot be repeated bit for bit."""
        others = {about.processor for other, about in self.known.items() if other != node}
        if unlike := sorted(others - {processor}):
            log(
                WARNING,
                "a mixed fleet: %s computes on %s, others on %s; last bits of their sums differ, "
                "so that a repeated or resumed run is not bitwise identical",
                self.label(node),
                quoted(processor),
                quoted(", ".join(unlike)),
            )

    def _note(self, item: Arrived) -> None:
        """Note from an open letter whether its node is busy, idle, or has left."""
        node, answer = item.letter.node, item.answer
        if isinstance(answer, Lost) and answer.code == "gone":
            self._forget(node, answer.reason)
        elif isinstance(answer, Lost) and answer.code == "late":
            self.busy.setdefault(node, item.letter.about)
        elif not (isinstance(answer, Lost) and answer.code == "unsent"):
            self.busy.pop(node, None)

    def _late(self, item: Arrived, seconds: float) -> None:
        """Handle an answer to a letter that was given up: it is never a result."""
        node, answer = item.letter.node, item.answer
        if isinstance(answer, Lost) and answer.code == "gone":
            self._forget(node, answer.reason)
        elif not (isinstance(answer, Lost) and answer.code == "late"):
            name, about = self.label(node), item.letter.about
            log(WARNING, "dropped the answer of %s to %s: %.1f s late", name, about, seconds)
            # A late description may be from before the node became busy.
            if item.letter.client is not None and node in self.known:
                self.busy.pop(node, None)

    def _forget(self, node: int, reason: str) -> None:
        """Forget a node that has left; if it comes back, it is asked again."""
        log(WARNING, "%s has left: %s", self.label(node), reason)
        for found in (self.known, self.refused, self.busy):
            found.pop(node, None)
        self.present = [other for other in self.present if other != node]

    def _clash(self, node: int) -> str | None:
        """Describe the other node with this one's name, if there is one."""
        name = self.known[node].name
        if node in self.usable() or node not in self.present:
            return None
        first = next(n for n in self.usable() if self.known[n].name == name)
        return f"node {first} is also called {name!r}; give each node a separate name"

    def _too_few(self, found: int, seconds: float) -> str:
        reasons = {node: self.refused[node] for node in self.present if node in self.refused}
        for node in self.present:
            if node in self.busy:
                reasons[node] = f"busy, or silent; it missed: {self.busy[node]}"
            elif node in self.known and (clash := self._clash(node)):
                reasons[node] = clash
        lines = "".join(f"\n  {self.label(node)}: {reason}" for node, reason in reasons.items())
        return (
            f"{found} usable node(s) after {seconds:g} s; expected "
            f"{self.settings.num_nodes} or more: start more `flower-supernode`s, or lower "
            f"`num_nodes` in the run config{lines}"
        )

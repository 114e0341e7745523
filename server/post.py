"""Messages that are out: each comes back as a reply, or as the reason why there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

PAUSE_SECONDS = 0.1
"""Between two looks for replies."""


@dataclass(frozen=True)
class Lost:
    """A message that got no reply."""

    reason: str


class Post:
    """Sends each node at most one message at a time, and gives back one answer for each."""

    def __init__(self, grid: Grid, seconds: float) -> None:
        self.grid, self.seconds = grid, seconds
        self.out: dict[str, tuple[int, float]] = {}
        """By message id: its node, and when it is given up."""
        self.refused: list[int] = []

    def send(self, node: int, kind: str, content: RecordDict) -> None:
        """Send `content` to a node; Flower drops it there, too, once its time is over."""
        message = Message(content, node, kind, ttl=self.seconds)
        # flwr 1.41: a message that is not accepted has the id None, or is left out of the list.
        ids = [number for number in self.grid.push_messages([message]) if number]
        if ids:
            self.out[ids[0]] = node, time.monotonic() + self.seconds
        else:
            self.refused.append(node)

    def arrived(self) -> list[tuple[int, RecordDict | Lost]]:
        """What came back since the last look, and from whom; waits a moment if nothing did."""
        answers: list[tuple[int, RecordDict | Lost]] = [
            (node, Lost("Flower did not accept the message; the node may have left"))
            for node in self.refused
        ]
        self.refused.clear()
        for reply in self.grid.pull_messages(list(self.out)) if self.out else ():
            # An error from Flower itself names no node: the id it replies to is the only hold.
            found = self.out.pop(reply.metadata.reply_to_message_id, None)
            if found is not None:
                answers.append((found[0], _content(reply)))
        now = time.monotonic()
        for number, (node, end) in list(self.out.items()):
            if now > end:
                del self.out[number]
                answers.append((node, Lost(f"no answer within {self.seconds:g} s")))
        if not answers:
            time.sleep(PAUSE_SECONDS)
        return answers


def _content(reply: Message) -> RecordDict | Lost:
    if reply.has_error():
        return Lost(f"{reply.error.reason or 'no reason given'} (Flower error {reply.error.code})")
    return reply.content

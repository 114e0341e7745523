"""Messages in flight: each ends as a reply, or as the reason why there is none.

Every request carries a random nonce, which its reply must repeat. A message that is given up stays
known: its id identifies a later reply, which is never taken for the answer to another message.
Flower 1.41 drops a reply once its request's time (`ttl`) is over, but not one whose upload has
begun; see `pulls.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from logging import WARNING
from typing import Literal, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import WireError, quoted
from server.messages import check_nonce, request_config
from server.private import ErrorCode, log
from server.pulls import Pulls

PAUSE_SECONDS = 0.1
"""Between two looks for replies."""
PATIENCE_SECONDS = 0.2
"""To wait for a call to Flower; a longer one continues in the background."""
EARLY_SECONDS = 1.0
"""By which a message may seem to expire too early."""
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Flower's codes for a message that has expired."""

CODES: dict[int, Literal["gone", "crashed"]] = {
    ErrorCode.NODE_UNAVAILABLE: "gone",
    ErrorCode.CLIENT_APP_CRASHED: "crashed",
}
REFUSED = "Flower did not accept the message; it may be too large, or the node may have left"


class Clock(Protocol):
    """The part of the module `time` that waiting needs."""

    def monotonic(self) -> float:
        """Return the time in seconds."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Letter:
    """A message that was sent."""

    node: int
    nonce: str
    client: int | None
    """The client whose task it is; None if it asks a node who it is."""
    about: str
    """A description for the log."""
    seconds: float
    end: float
    """When it is given up, on the clock."""
    number: int = 0
    """Its place in the order of sending."""


@dataclass(frozen=True)
class Lost:
    """A message that got no usable reply."""

    reason: str
    code: Literal["late", "gone", "unsent", "crashed", "failed", "message", "replay"]
    """`late`: no answer in time; `gone`: the node has left; `unsent`: Flower did not accept the
    message; `crashed`: the process that had it died; `failed`: the node could not; the others are
    codes of a `WireError`."""


@dataclass(frozen=True)
class Arrived:
    """A letter with its answer, or the reason why there is none."""

    letter: Letter
    answer: RecordDict | Lost
    late_seconds: float | None = None
    """How long ago the letter was given up; None if it was still open."""


class Post:
    """Sends messages, and returns one answer for each and every late reply."""

    def __init__(self, grid: Grid, clock: Clock = time) -> None:
        self.grid, self.clock = grid, clock
        # With a test's clock every call is waited for, so that the test is repeatable.
        self.pulls = Pulls(grid, PATIENCE_SECONDS if clock is time else None)
        self.out: dict[str, Letter] = {}
        """Open letters by message id."""
        self.late: dict[str, Letter] = {}
        """Letters that were given up."""
        self.answered: dict[str, Letter] = {}
        self.unsent: list[Letter] = []
        self.numbers = count(1)

    def send(
        self,
        node: int,
        kind: str,
        content: RecordDict,
        about: str,
        seconds: float,
        client: int | None = None,
    ) -> None:
        """Send `content` to a node; after `seconds` Flower drops it, too."""
        nonce = secrets.token_hex(16)
        request_config(content)["nonce"] = nonce
        message = Message(content, node, kind, ttl=seconds)
        end = self.clock.monotonic() + seconds
        letter = Letter(node, nonce, client, about, seconds, end, next(self.numbers))
        # flwr 1.41: a message that is not accepted has the id None, or is missing from the list.
        ids = [number for number in self.grid.push_messages([message]) if number]
        if ids:
            self.out[ids[0]] = letter
        else:
            self.unsent.append(letter)

    def arrived(self) -> list[Arrived]:
        """Return what has arrived since the last look; wait a moment if nothing has.

        A letter may be given up while its reply is on its way, which is then late.
        """
        found = [Arrived(letter, Lost(REFUSED, "unsent")) for letter in self.unsent]
        self.unsent.clear()
        for reply in self.pulls.replies([*self.out, *self.late]):
            if (recognised := self._recognised(reply)) is not None:
                found.append(recognised)
        found += self._given_up()  # after the replies: the caller may have been away for long
        if not found:
            self.clock.sleep(PAUSE_SECONDS)
        return found

    def forgotten(self, question: Letter) -> list[Arrived]:
        """Give up the open tasks that a node lost: it has answered a question sent after them.

        A SuperNode takes one message at a time, in the order in which they were sent.
        """
        node, number = question.node, question.number
        over = self._give_up(
            lambda x: x.node == node and x.client is not None and x.number < number
        )
        lost = Lost("its node was restarted, and has lost it", "gone")
        return [Arrived(letter, lost) for letter in over]

    def _given_up(self) -> list[Arrived]:
        """Give up the letters whose time is over."""
        now = self.clock.monotonic()
        return [
            Arrived(letter, Lost(f"no answer within {round(letter.seconds, 1):g} s", "late"))
            for letter in self._give_up(lambda letter: now >= letter.end)
        ]

    def _give_up(self, chosen: Callable[[Letter], bool]) -> list[Letter]:
        over = {number: letter for number, letter in self.out.items() if chosen(letter)}
        for number in over:
            self.late[number] = self.out.pop(number)
        return [*over.values()]

    def _recognised(self, reply: Message) -> Arrived | None:
        """Return a reply with its letter; None if that was answered before or is not ours."""
        # An error from Flower itself names no node, only the id that it replies to.
        number = reply.metadata.reply_to_message_id
        if number in self.out:
            letter, late = self.out.pop(number), None
        elif number in self.late:
            letter = self.late.pop(number)
            late = self.clock.monotonic() - letter.end
        else:
            once = self.answered.get(number)
            about = f"a second reply to {once.about}" if once else "a reply to an unknown request"
            log(WARNING, "dropped %s, from node %d", about, reply.metadata.src_node_id)
            return None
        self.answered[number] = letter
        return Arrived(letter, _answer(reply, letter, self.clock.monotonic()), late)


def _answer(reply: Message, letter: Letter, now: float) -> RecordDict | Lost:
    if reply.has_error():
        code, reason = reply.error.code, quoted(reply.error.reason or "no reason given")
        reason = f"{reason} (Flower error {code})"
        if code in EXPIRED and now < letter.end - EARLY_SECONDS:
            # Its upload was cut short: Flower knows of the reply, but does not have it.
            return Lost(f"the reply was lost in transit: {reason}", "crashed")
        if code in EXPIRED:
            return Lost(f"no answer in time: {reason}", "late")
        return Lost(reason, CODES.get(code, "failed"))
    if (sender := reply.metadata.src_node_id) != letter.node:
        return Lost(f"the reply is node {sender}'s; expected node {letter.node}'s", "replay")
    try:
        check_nonce(reply.content, letter.nonce)
    except WireError as error:
        return Lost(str(error), "replay" if error.code == "replay" else "message")
    return reply.content

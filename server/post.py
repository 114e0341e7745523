"""Messages that are out: each comes back as a reply, or as the reason why there is none.

Every request carries a random nonce of its own, which its reply must show. A message that is given
up stays known: what comes of it later is told apart by its id, and is never taken for the answer to
another. Flower 1.41 itself drops a reply once its request's time (`ttl`) is over, but not one whose
upload has begun; see `pulls.py`.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from itertools import count
from logging import WARNING
from typing import Literal, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import WireError
from server.messages import check_nonce, plain, request_config
from server.private import ErrorCode, log
from server.pulls import Pulls

PAUSE_SECONDS = 0.1
"""Between two looks for replies."""
PATIENCE_SECONDS = 0.2
"""To wait for a call to Flower; one that takes longer is left to itself until it ends."""
EARLY_SECONDS = 1.0
"""By which a message's time may seem to be over too early."""
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Flower's words for a message whose time was over."""

CODES: dict[int, Literal["gone", "crashed"]] = {
    ErrorCode.NODE_UNAVAILABLE: "gone",
    ErrorCode.CLIENT_APP_CRASHED: "crashed",
}
REFUSED = "Flower did not accept the message; it may be too large, or the node have left"


class Clock(Protocol):
    """The part of the module `time` that waiting takes."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


@dataclass(frozen=True)
class Letter:
    """A message that was sent."""

    node: int
    nonce: str
    client: int | None
    """Whose task it is; None asks a node who it is."""
    about: str
    """What it is, for the log."""
    seconds: float
    end: float
    """When it is given up, by the clock."""
    number: int = 0
    """In the order in which letters are sent."""


@dataclass(frozen=True)
class Lost:
    """A message that got no usable reply."""

    reason: str
    code: Literal["late", "gone", "unsent", "crashed", "failed", "message", "replay"]
    """`late`: no answer in time; `gone`: the node has left; `unsent`: Flower did not take the
    message; `crashed`: the process that had it died; `failed`: the node could not; the others are
    of a `WireError`."""


@dataclass(frozen=True)
class Arrived:
    """What came of a letter."""

    letter: Letter
    answer: RecordDict | Lost
    late_seconds: float | None = None
    """How long ago the letter was given up; None for one that was still open."""


class Post:
    """Sends messages and gives back one answer for each, and what else comes of it later."""

    def __init__(self, grid: Grid, clock: Clock = time) -> None:
        self.grid, self.clock = grid, clock
        # With a clock of a test's own every call is waited for, so that a test repeats itself.
        self.pulls = Pulls(grid, PATIENCE_SECONDS if clock is time else None)
        self.out: dict[str, Letter] = {}
        """By message id; so are the next two."""
        self.late: dict[str, Letter] = {}
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
        """Send `content` to a node; Flower drops it there, too, after `seconds`."""
        nonce = secrets.token_hex(16)
        request_config(content)["nonce"] = nonce
        message = Message(content, node, kind, ttl=seconds)
        end = self.clock.monotonic() + seconds
        letter = Letter(node, nonce, client, about, seconds, end, next(self.numbers))
        # flwr 1.41: a message that is not accepted has the id None, or is left out of the list.
        ids = [number for number in self.grid.push_messages([message]) if number]
        if ids:
            self.out[ids[0]] = letter
        else:
            self.unsent.append(letter)

    def arrived(self) -> list[Arrived]:
        """What has come since the last look; waits a moment if nothing has.

        A letter may be given up while its reply is under way, which is then late when it comes.
        """
        found = [Arrived(letter, Lost(REFUSED, "unsent")) for letter in self.unsent]
        self.unsent.clear()
        for reply in self.pulls.replies([*self.out, *self.late]):
            if (recognised := self._recognised(reply)) is not None:
                found.append(recognised)
        found += self._given_up()  # after what came: the caller may have been away for long
        if not found:
            self.clock.sleep(PAUSE_SECONDS)
        return found

    def forgotten(self, question: Letter) -> list[Arrived]:
        """Open tasks that a node has forgotten: it has answered what was sent to it after them.

        A SuperNode takes one message at a time, in the order in which they were sent.
        """
        over = {
            number: letter
            for number, letter in self.out.items()
            if letter.node == question.node
            and letter.client is not None
            and letter.number < question.number
        }
        for number in over:
            self.late[number] = self.out.pop(number)
        lost = Lost("its node was started again, and has forgotten it", "gone")
        return [Arrived(letter, lost) for letter in over.values()]

    def _given_up(self) -> list[Arrived]:
        now = self.clock.monotonic()
        over = [number for number, letter in self.out.items() if now >= letter.end]
        for number in over:
            self.late[number] = self.out.pop(number)
        late = (self.late[number] for number in over)
        return [
            Arrived(letter, Lost(f"no answer within {round(letter.seconds, 1):g} s", "late"))
            for letter in late
        ]

    def _recognised(self, reply: Message) -> Arrived | None:
        """The letter that a reply is for; None where it was answered before, or is none of ours."""
        # An error from Flower itself names no node: the id it replies to is the only hold.
        number = reply.metadata.reply_to_message_id
        if number in self.out:
            letter, late = self.out.pop(number), None
        elif number in self.late:
            letter = self.late.pop(number)
            late = self.clock.monotonic() - letter.end
        else:
            once = self.answered.get(number)
            what = (
                f"a second reply to {once.about}" if once else "a reply to no request of this run"
            )
            log(WARNING, "dropped %s, from node %d", what, reply.metadata.src_node_id)
            return None
        self.answered[number] = letter
        return Arrived(letter, _answer(reply, letter, self.clock.monotonic()), late)


def _answer(reply: Message, letter: Letter, now: float) -> RecordDict | Lost:
    if reply.has_error():
        code, reason = reply.error.code, plain(reply.error.reason or "no reason given")
        said = f"{reason} (Flower error {code})"
        if code in EXPIRED and now < letter.end - EARLY_SECONDS:
            # Its upload was cut short: Flower knows of the reply, and does not have it.
            return Lost(f"the reply was lost on its way: {said}", "crashed")
        if code in EXPIRED:
            return Lost(f"no answer in time: {said}", "late")
        return Lost(said, CODES.get(code, "failed"))
    if (sender := reply.metadata.src_node_id) != letter.node:
        return Lost(f"the reply is node {sender}'s; expected node {letter.node}'s", "replay")
    try:
        check_nonce(reply.content, letter.nonce)
    except WireError as error:
        return Lost(str(error), "replay" if error.code == "replay" else "message")
    return reply.content

"""Conversations that are too long, without their oldest turns."""

from __future__ import annotations

from collections.abc import Callable

from fedmoe.data.answers import answers_in
from fedmoe.data.conversations import Message
from fedmoe.data.text import TextSettings, Tokens


def fitted(
    messages: list[Message],
    settings: TextSettings,
    made: Callable[[list[Message]], list[Tokens]],
    at_least: Callable[[list[Message]], int],
) -> tuple[list[Tokens], bool]:
    """Return the rows of a conversation, without its oldest turns as long as they are too long."""
    most, part = settings.max_length, messages
    if settings.too_long == "truncate":
        # The bound is quick to have; rows take a rendering of every turn.
        while at_least(part) > most and (shorter := without_oldest(part)) is not None:
            part = shorter
    rows = made(part)
    while settings.too_long == "truncate" and max(len(r.ids) for r in rows) > most:
        if (shorter := without_oldest(part)) is None:
            break
        rows, part = made(shorter), shorter
    return rows, part is not messages


def without_oldest(messages: list[Message]) -> list[Message] | None:
    """Return a conversation without its oldest turn: a user's message and what follows it.

    The system prompt stays, and so does the last answer with what it answers: None if no more than
    that is left.

    Example:
        >>> chat = [{"role": r} for r in ("system", "user", "assistant", "user", "assistant")]
        >>> [message["role"] for message in without_oldest(chat)]
        ['system', 'user', 'assistant']
    """
    head = int(messages[0]["role"] == "system")
    last = answers_in(messages)[-1]
    later = (n for n in range(head + 1, last) if messages[n]["role"] == "user")
    start = next(later, None)
    return None if start is None else messages[:head] + messages[start:]

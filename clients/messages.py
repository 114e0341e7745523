"""Flower's records on the client's side; `server/messages.py` is the other end.

- request: a config of `code` and, to train, `experiment`, `run` and `scalars`, and a `buffer`
- reply: a config of `clients`, `scalars` or `reason`; with `scalars` goes an update's `buffer`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

if TYPE_CHECKING:
    # It imports torch, and who is asked only for its name should answer at once.
    from fedmoe.wire import Message


def text(content: RecordDict, name: str) -> str:
    """A text of the request's config."""
    return str(content.config_records["config"][name])


def buffer(content: RecordDict) -> bytes:
    """The bytes of the request's array, without a copy and without numpy's header."""
    return content.array_records["arrays"]["buffer"].data


def words(**values: str) -> RecordDict:
    """A reply without arrays."""
    return RecordDict({"config": ConfigRecord(dict(values))})


def update_content(message: Message) -> RecordDict:
    """A packed update as a reply."""
    array = Array("uint8", (len(message.buffer),), "bytes", bytes(message.buffer))
    return RecordDict(
        {
            "config": ConfigRecord({"scalars": message.scalars}),
            "arrays": ArrayRecord({"buffer": array}),
        }
    )

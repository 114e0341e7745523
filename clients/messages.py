"""Flower's records on the client's side; `server/messages.py` is the other end.

- request: a config of `code` and `nonce`, with `components` to ask who a node is; to train, with
  `experiment`, `run`, `scalars` and `crc32`, and a `buffer`
- reply: a config of the request's `nonce` and what the node is, `scalars` or a `reason`; with
  `scalars` go their `crc32` and an update's `buffer`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

if TYPE_CHECKING:
    # It imports torch, and who is asked only for its name should answer at once.
    from fedmoe.messages.codec import Message


def text(content: RecordDict, name: str) -> str:
    """A text of the request's config."""
    return str(content.config_records["config"][name])


def buffer(content: RecordDict) -> bytes:
    """The bytes of the request's array, without a copy and without numpy's header."""
    return content.array_records["arrays"]["buffer"].data


def words(**values: str | int) -> RecordDict:
    """A reply without arrays."""
    return RecordDict({"config": ConfigRecord(dict(values))})


def crc32(content: RecordDict) -> int:
    """The request's checksum."""
    return int(str(content.config_records["config"]["crc32"]))


def update_content(message: Message) -> RecordDict:
    """A packed and sealed update as a reply."""
    array = Array("uint8", (len(message.buffer),), "bytes", bytes(message.buffer))
    return RecordDict(
        {
            "config": ConfigRecord({"scalars": message.scalars, "crc32": message.crc32 or 0}),
            "arrays": ArrayRecord({"buffer": array}),
        }
    )

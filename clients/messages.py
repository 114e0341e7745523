"""Flower's records on the client's side; those of the server are in `server/messages.py`.

- request: a config of `code` and `nonce`, with `components` to ask who a node is; to train, with
  `experiment`, `run`, `scalars` and `checksum`, and a `buffer`;
  for a step of masked sums with `masks`, its request (`privacy/masks/wire.py`)
- reply: a config of the request's `nonce` and the node's description, `scalars` or a `reason`;
  `scalars` come with their `checksum` and an update's `buffer`
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    # It imports torch, and a node that is only asked for its name should answer at once.
    from fedmoe.messages.records import Message


def text(content: RecordDict, name: str) -> str:
    """Read a text of the request's config."""
    return str(content.config_records["config"][name])


def parsed(text: object) -> Any:
    """Return what a server's text in JSON says.

    Raises:
        FedMoEError: it is none.
    """
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise FedMoEError(f"the request cannot be read: {error!s:.100}") from None


def buffer(content: RecordDict) -> bytes:
    """Return the bytes of the request's array, without a copy or numpy's header."""
    return content.array_records["arrays"]["buffer"].data


def words(**values: str | int) -> RecordDict:
    """Make a reply without arrays."""
    return RecordDict({"config": ConfigRecord(dict(values))})


def checksum(content: RecordDict) -> int:
    """Read the request's checksum."""
    found = content.config_records["config"]["checksum"]
    if not isinstance(found, int):
        raise FedMoEError(f"the request's checksum is {found!r:.60}; expected a number")
    return found


def update_content(message: Message) -> RecordDict:
    """Make a reply of a packed and sealed update."""
    array = Array("uint8", (len(message.buffer),), "bytes", bytes(message.buffer))
    return RecordDict(
        {
            "config": ConfigRecord({"scalars": message.scalars, "checksum": message.checksum or 0}),
            "arrays": ArrayRecord({"buffer": array}),
        }
    )

"""Flower's records on the server's side; `clients/messages.py` is the other end.

- request: a config of `code` and, to train, `experiment`, `run` and `scalars`, and a `buffer`
- reply: a config of `clients`, `scalars` or `reason`; with `scalars` goes an update's `buffer`
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmoe.errors import WireError
from fedmoe.wire import Message

LONGEST_REASON = 500
"""Characters of a node's reason that are kept."""


def hello_content(code: str) -> RecordDict:
    """The question who a node is."""
    return RecordDict({"config": ConfigRecord({"code": code})})


def task_content(message: Message, experiment: str, code: str, run: str) -> RecordDict:
    """A packed task as a request."""
    array = Array("uint8", (len(message.buffer),), "bytes", bytes(message.buffer))
    config = ConfigRecord(
        {"code": code, "experiment": experiment, "run": run, "scalars": message.scalars}
    )
    return RecordDict({"config": config, "arrays": ArrayRecord({"buffer": array})})


def read_clients(content: RecordDict) -> frozenset[int]:
    """The clients whose data lies on the node that sent this; empty when it holds any.

    Raises:
        WireError: it refuses, or it is no answer to `hello_content`.
    """
    named = _text(content, "clients")
    try:
        return frozenset(int(number) for number in named.split(",") if number)
    except ValueError:
        raise WireError(f"clients are {named[:LONGEST_REASON]!r}; expected numbers") from None


def read_update(content: RecordDict) -> Message:
    """The packed update in a reply, not decoded yet: its size is checked first.

    Raises:
        WireError: the node refused the task, and why; or it is no answer to `task_content`.
    """
    scalars = _text(content, "scalars")
    arrays = content.get("arrays")
    array = arrays.get("buffer") if isinstance(arrays, ArrayRecord) else None
    if not isinstance(array, Array):
        raise WireError("the reply holds no buffer")
    return Message(scalars, array.data)


def _text(content: RecordDict, name: str) -> str:
    config = content.get("config")
    if not isinstance(config, ConfigRecord):
        raise WireError("the reply holds no config")
    if isinstance(reason := config.get("reason"), str):
        raise WireError(reason[:LONGEST_REASON])
    if not isinstance(value := config.get(name), str):
        raise WireError(f"the reply's {name} is missing or no text")
    return value

"""Flower's records on the server's side; `clients/messages.py` is the other end.

- request: a config of `code` and `nonce`, with `components` to ask who a node is; to train, with
  `experiment`, `run`, `scalars` and `checksum`, and a `buffer`; to score, with a `split`, too; for
  a step of masked sums with `masks`; always with what nodes are told of the experiment's `data`
- reply: a config of the request's `nonce` and the node's description, `scalars` or a `reason`;
  with `scalars` go their `checksum` and an update's `buffer`
"""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmoe.errors import WireError
from fedmoe.messages.codec import sealed
from fedmoe.messages.records import Message


def hello_content(code: str, components: str, data: str) -> RecordDict:
    """Return a request for a node's description, which names the components that it needs."""
    config = ConfigRecord({"code": code, "components": components, "data": data})
    return RecordDict({"config": config})


def task_content(
    message: Message,
    experiment: str,
    code: str,
    run: str,
    data: str,
    split: str = "",
    masks: str = "",
) -> RecordDict:
    """Return a packed task as a request, with its checksum: to train, or to score a split.

    `masks` is a step of masked sums that the task's client makes; see `privacy.masks.wire`.
    """
    message = sealed(message)
    array = Array("uint8", (len(message.buffer),), "bytes", bytes(message.buffer))
    config = ConfigRecord(
        {
            "code": code,
            "experiment": experiment,
            "run": run,
            "scalars": message.scalars,
            "checksum": message.checksum or 0,
            "data": data,
            "split": split,
        }
    )
    if masks:
        config["masks"] = masks
    return RecordDict({"config": config, "arrays": ArrayRecord({"buffer": array})})


def request_config(content: RecordDict) -> ConfigRecord:
    """Return the config of a request, into which `Post` writes the nonce."""
    return content.config_records["config"]


def check_nonce(content: RecordDict, nonce: str) -> None:
    """Refuse a reply to another request.

    Raises:
        WireError: `replay`, or `message` if it is not a reply of ours.
    """
    config = _config(content)
    if not isinstance(found := config.get("nonce"), str):
        raise WireError("the reply's nonce is missing or no text")
    if found != nonce:
        raise WireError(
            f"the reply's nonce is {found[:40]!r}; the request's is {nonce!r}: it is an answer to "
            "another request",
            "replay",
        )


def read_about(content: RecordDict) -> dict[str, Any]:
    """Return a node's description of itself, unchecked.

    Raises:
        WireError: it refuses to give one; the message has its reason.
    """
    config = _config(content)
    _check_reason(config)
    return {name: value for name, value in config.items() if name != "nonce"}


def read_update(content: RecordDict) -> Message:
    """Return the packed update in a reply, not decoded: its size is checked first.

    Raises:
        WireError: the node refused the task, with its reason, or it does not answer `task_content`.
    """
    config = _config(content)
    _check_reason(config)
    if not isinstance(scalars := config.get("scalars"), str):
        raise WireError("the reply's scalars is missing or no text")
    arrays = content.get("arrays")
    array = arrays.get("buffer") if isinstance(arrays, ArrayRecord) else None
    if not isinstance(array, Array):
        raise WireError("the reply holds no buffer")
    checksum = config.get("checksum")
    if not isinstance(checksum, int):
        raise WireError("the reply's checksum is missing or no number")
    return Message(scalars, array.data, checksum)


def _config(content: RecordDict) -> ConfigRecord:
    if not isinstance(config := content.get("config"), ConfigRecord):
        raise WireError("the reply holds no config")
    return config


def _check_reason(config: ConfigRecord) -> None:
    """Raise the reason that a node gives for not answering."""
    if isinstance(reason := config.get("reason"), str):
        raise WireError(reason, "failed")

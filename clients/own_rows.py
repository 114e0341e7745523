"""The rows that are on a node, as its own config says: whose they are, and their digests."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.messages.rows import WITHHELD
from fedmoe.system.digests import files_digest
from fedmoe.system.files import expanded

if TYPE_CHECKING:
    from fedmoe.data.federated import Federated

REPORTED = ("labels", "score", "name")
"""What a node reports of its clients unless its config's `report` leaves it out."""
SALT_BYTES = 32


@dataclass(frozen=True)
class OwnRows:
    """The clients of this node."""

    digests: dict[str, str]
    """By the name that the server is told: a digest of the client's files."""
    path: str
    """JSON for `data.path`; empty if the node names no rows of its own."""


def own_rows(node_config: Mapping[str, object], data: Mapping[str, Any]) -> OwnRows:
    """Return the clients whose rows are on this node.

    `data` of the node's config is a folder, a glob, or words such as `a=/srv/a.jsonl b=/srv/b`.
    Without it the experiment's own path counts, as in a simulation on one machine.

    Args:
        data: the experiment's section `data`, as the server tells it.

    Raises:
        FedMoEError: there is no such path, or no client's rows are there; or names are withheld,
            and there is no `state`.
    """
    # Here, because it takes seconds, and most nodes of pooled data never need it.
    from fedmoe.data.federated import Federated, LocalData

    named = str(node_config.get("data", ""))
    path = named_path(named) if named else data.get("path", "")
    if not path:
        raise FedMoEError(
            'this node names no rows: set `data` in its node config, as data="a=/srv/rows.jsonl"'
        )
    path = tuple(path) if isinstance(path, list) else path
    local = LocalData(Federated(path=path, column=str(data.get("column", ""))))
    withhold = "name" not in reported(node_config)
    if local.dataset.column:
        if withhold:
            raise FedMoEError(
                "node config: report leaves out `name`, and with data.column the names are in the "
                "rows; give each client a file of its own"
            )
        digest = files_digest(expanded(str(path)))
        return OwnRows(dict.fromkeys(local.names, digest), json.dumps(path))
    places, salt = {}, salt_of(str(node_config.get("state", ""))) if withhold else b""
    for name in local.names:
        files = [f for f in vars(local.sources[name]).values() if f is not None]
        told = alias(name, salt) if withhold else name
        place = files[0].parent if len(files) > 1 else files[0]
        places[told] = str(place.absolute()), files_digest(*files)
    paths = json.dumps({name: place for name, (place, _) in places.items()})
    return OwnRows({n: digest for n, (_, digest) in places.items()}, paths)


def rows_here(data: Federated, named: str, report: Sequence[str], state: str = "") -> Federated:
    """Return the experiment's data with the rows of this node's clients, whoever else there is.

    The server's test set stays at the server.

    Args:
        named: `data` of the node's config.
        report: what the node reports of its clients.
        state: `state` of the node's config.
    """
    config = {"data": named, "report": " ".join(report), "state": state}
    path = own_rows(config, {"path": data.path, "column": data.column}).path
    own = json.loads(path) if path else data.path
    return replace(data, path=own, clients=(), server_test="")


def named_path(text: str) -> str | list[str] | dict[str, str]:
    """Return the `data` of a node's config as a path, a list of paths, or paths by client.

    >>> named_path("a=/srv/a.jsonl b=/srv/b.jsonl"), named_path("/srv/rows")
    ({'a': '/srv/a.jsonl', 'b': '/srv/b.jsonl'}, '/srv/rows')
    """
    words = shlex.split(text)
    pairs = [word.partition("=") for word in words if "=" in word]
    if not pairs:
        return words if len(words) > 1 else text
    if len(pairs) < len(words) or len({name for name, _, _ in pairs}) < len(pairs):
        raise FedMoEError(
            f"node config: data is {text!r:.200}; expected a folder, or NAME=PATH for each client, "
            "each name once"
        )
    return {name: place for name, _, place in pairs}


def reported(node_config: Mapping[str, object]) -> list[str]:
    """Return what this node reports of its clients, as `report="labels score"`.

    Raises:
        FedMoEError: a word is none of `REPORTED`.
    """
    named = node_config.get("report")
    words = [*REPORTED] if named is None else str(named).replace(",", " ").split()
    if bad := [word for word in words if word not in REPORTED]:
        raise FedMoEError(
            f"node config: report has {bad[0]!r}; expected some of {', '.join(REPORTED)}, or none"
        )
    return words


def alias(name: str, salt: bytes) -> str:
    """Return what a client that withholds its name is called; nobody can guess it from the name."""
    return WITHHELD + hmac.digest(salt, name.encode(), "sha256").hex()[:8]


def salt_of(state: str) -> bytes:
    """Return this node's random salt, which is made once and kept in its `state`.

    Raises:
        FedMoEError: the node has no such folder, or the file cannot be read or written.
    """
    if not state:
        raise FedMoEError(
            "node config: report leaves out `name`; set `state` to a folder that stays: there this "
            "node keeps the random number by which it calls its clients the same in every round"
        )
    folder = expanded(state)
    path, new = folder / "withheld.salt", folder / f".withheld.{secrets.token_hex(8)}"
    try:
        if not path.exists():
            folder.mkdir(0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SALT_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # whole, or not at all; the first of two counts
                os.link(new, path)
            new.unlink()
        salt = path.read_bytes()
    except OSError as error:
        raise FedMoEError(f"{path}: {error.strerror or error}") from error
    if len(salt) != SALT_BYTES:
        raise FedMoEError(f"{path} has {len(salt)} bytes; expected {SALT_BYTES}. Remove it for new")
    return salt


def pooled_digest(node_config: Mapping[str, object], path: str) -> str:
    """Return a digest of the file that all nodes share out; `missing` if it is not here."""
    place = expanded(here(node_config, "data.path", path))
    return files_digest(place) if place.is_file() else "missing"


def here(node_config: Mapping[str, object], setting: str, value: str) -> str:
    """Return a setting of the experiment as it is on this node, whose config may override it.

    >>> here({"overrides": "text.template=/srv/own.jinja"}, "text.template", "chat.jinja")
    '/srv/own.jinja'
    """
    for word in shlex.split(str(node_config.get("overrides", ""))):
        key, equals, own = word.partition("=")
        value = own if key == setting and equals else value
    return value

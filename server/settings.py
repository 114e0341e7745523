"""The server's part of the run config: timeouts, and which node serves which clients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedmoe.config.explain import explain
from fedmoe.config.place import Place, fields
from fedmoe.config.words import not_one_of
from fedmoe.errors import ConfigError, Fault
from fedmoe.rounds import Member
from fedmoe.section import section

Seconds = Annotated[float, Field(gt=0)]


@section
class Settings:
    """Keys of `[tool.flwr.app.config]`; none changes what a client computes."""

    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes that a round needs: present, fit and idle."""
    node_seconds: Seconds = 120.0
    """Seconds to wait for them before a round, and in a round for a busy node if no other is at
    work; and for each short step of secure aggregation. Before a round, a silent node is waited for
    up to `task_seconds`."""
    task_seconds: Seconds = 3600.0
    """Seconds to wait for one client's update, which is late after that."""
    round_seconds: Seconds = 21600.0
    """Seconds from a round's start after which everything missing is late; in an asynchronous run,
    from a task's. A message expires after the shorter of the two."""
    allow_versions: bool = False
    """Take nodes whose torch or transformers differ: their updates, and so the run, are not bitwise
    identical to those of one version."""
    nodes: str = ""
    """The clients or tiers that a named node serves, as `lab-3090=0,3; pi=low`; where clients bring
    rows of their own, the owners that it may speak for, as `lab-3090=berlin,paris`. A node whose
    key is registered for a name gets no other clients' tasks, and none without an entry; an owner
    of the same name needs no entry."""


def read_settings(run_config: Mapping[str, Any]) -> Settings:
    """Return the settings in a run config, which has other keys, too.

    >>> read_settings({"num_nodes": 3, "config": "configs/quickstart.yaml"}).num_nodes
    3

    Raises:
        ConfigError: with every fault.
    """
    given = {name: run_config[name] for name in fields(Settings) if name in run_config}
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = sorted(explain(error, Place(Settings), given))
        raise ConfigError("run config", faults) from None


def read_nodes(text: str, members: Sequence[Member]) -> dict[str, frozenset[int]]:
    """Return, by node name, the clients that this node alone serves.

    >>> members = [Member(0, "low", 1), Member(1, "high", 4), Member(2, "low", 1)]
    >>> {name: sorted(clients) for name, clients in read_nodes("lab=1; pi=low", members).items()}
    {'lab': [1], 'pi': [0, 2]}

    Raises:
        ConfigError: an entry is not `name=clients`, or names a client or tier that does not exist.
    """
    clients = {member.client for member in members}
    tiers = {m.tier: {n.client for n in members if n.tier == m.tier} for m in members}
    found: dict[str, frozenset[int]] = {}
    (entries, bad), faults = _entries(text), []
    for name, words in entries.items():
        served: set[int] = set()
        for word in words:
            number = int(word) if word.isdecimal() and len(word) < 10 else None
            if number in clients:
                served.add(number)
            elif word in tiers:
                served |= tiers[word]
            else:
                faults.append(
                    f"{name}: {word!r} is neither a client (0..{max(clients, default=0)}) nor a "
                    f"tier ({', '.join(tiers)})"
                )
        found[name] = frozenset(served)
    _refuse(faults + bad)
    return found


def read_owners(text: str, listed: Collection[str] = ()) -> dict[str, frozenset[str]]:
    """Return, by node name, the owners that this node may speak for.

    >>> {name: sorted(owners) for name, owners in read_owners("lab=berlin, paris").items()}
    {'lab': ['berlin', 'paris']}

    Args:
        text: as in the run config.
        listed: all owners, if that is known.

    Raises:
        ConfigError: an entry is not `name=owners`, or names an owner that is not listed.
    """
    entries, faults = _entries(text)
    for name, words in entries.items() if listed else ():
        faults += [f"{name}: {not_one_of(w, [*listed])}" for w in words if w not in listed]
    _refuse(faults)
    return {name: frozenset(words) for name, words in entries.items()}


def _entries(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the words by node name, and faults."""
    found: dict[str, list[str]] = {}
    faults = []
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, sign, listed = (part.strip() for part in entry.partition("="))
        words = [word.strip() for word in listed.split(",")]
        if not (name and sign and all(words)) or name in found:
            fault = f"{name} is there twice" if name in found else f"{entry!r} is not an entry"
            faults.append(f"{fault}; expected for example `lab-3090=0,3; pi=low`")
        else:
            found[name] = words
    return found, faults


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("run config", [Fault("nodes", fault) for fault in faults])

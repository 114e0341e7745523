"""How long the server waits, and for whom: what the run config says beside the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedmoe.config.explain import explain
from fedmoe.config.place import Place, fields
from fedmoe.errors import ConfigError, Fault
from fedmoe.rounds import Member
from fedmoe.section import section

Seconds = Annotated[float, Field(gt=0)]


@section
class Settings:
    """Keys of `[tool.flwr.app.config]`; nothing here changes a bit of what a client computes."""

    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes that a round needs: here, fit and idle."""
    node_seconds: Seconds = 120.0
    """Seconds to wait for them before a round, and in a round for a busy node when no other is at
    work. Before a round, one that is here and silent is waited for up to `task_seconds`."""
    task_seconds: Seconds = 3600.0
    """Seconds to wait for one client's update; then it is late."""
    round_seconds: Seconds = 21600.0
    """Seconds from a round's start after which all that is missing is late. No message lives
    longer than the shorter of the two."""
    allow_versions: bool = False
    """Take nodes whose torch, transformers or kind of processor differ: their updates, and so the
    run, are not bitwise identical to those of one kind of machine."""
    nodes: str = ""
    """Which clients or tiers a named node serves, as `lab-3090=0,3; pi=low`."""


def read_settings(run_config: Mapping[str, Any]) -> Settings:
    """The settings in a run config, which holds other keys too.

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
    """By a node's name the clients that it serves, and no other node does.

    Raises:
        ConfigError: an entry is no `name=clients`, or names a client or tier that there is not.
    """
    clients = {member.client for member in members}
    tiers = {m.tier: {n.client for n in members if n.tier == m.tier} for m in members}
    found: dict[str, frozenset[int]] = {}
    faults = []
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, sign, listed = (part.strip() for part in entry.partition("="))
        words = [word.strip() for word in listed.split(",")]
        if not (name and sign and all(words)) or name in found:
            again = f"{name} is there twice" if name in found else f"{entry!r} is no entry"
            faults.append(f"{again}; expected such as `lab-3090=0,3; pi=low`")
            continue
        served: set[int] = set()
        for word in words:
            number = int(word) if word.isdecimal() and len(word) < 10 else None
            if number in clients:
                served.add(number)
            elif word in tiers:
                served |= tiers[word]
            else:
                faults.append(
                    f"{name}: {word!r} is no client (0..{max(clients, default=0)}) and no tier "
                    f"({', '.join(tiers)})"
                )
        found[name] = frozenset(served)
    if faults:
        raise ConfigError("run config", [Fault("nodes", fault) for fault in faults])
    return found

"""Who takes part in a deployment: the server's address, and every client's name and tier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from fedmoe.errors import ConfigError, Fault

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
"""A client's name is also that of a folder, a service and a container."""
HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")
RESERVED = {"superlink", "proxy", "server", "venv"}
PUBLIC_PORT, SUPERLINK_PORT, NODE_PORT = 8443, 8000, 9094


@dataclass(frozen=True)
class Node:
    """A client's machine: its number in the experiment, its tier, and where its data lies."""

    name: str
    number: int
    tier: str
    data: str | None
    port: int
    """Of its SuperNode's own interface, on loopback: two on one machine need two."""


@dataclass(frozen=True)
class Fleet:
    """The server and its clients."""

    host: str
    port: int
    nodes: tuple[Node, ...]
    insecure: bool = False

    @property
    def loopback(self) -> bool:
        """Whether all of it is on one machine, which needs no reverse proxy."""
        return is_loopback(self.host)

    @property
    def superlink_port(self) -> int:
        """Where the SuperLink listens, always on loopback; elsewhere a proxy is in front of it."""
        if self.loopback:
            return self.port
        return SUPERLINK_PORT if self.port != SUPERLINK_PORT else SUPERLINK_PORT + 1

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a name or an address never leaves its machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fleet_of(
    server: str, clients: Sequence[str], data: Sequence[str], node_port: int, insecure: bool
) -> Fleet:
    """The fleet that the command line names, as `HOST[:PORT]`, `NAME=TIER` and `NAME=PATH`.

    Raises:
        ConfigError: with every fault of the arguments.
    """
    faults: list[Fault] = []
    host, port = _address(server, faults)
    tiers = _pairs("--clients", "NAME=TIER", [p for c in clients for p in c.split(",")], faults)
    paths = _pairs("--data", "NAME=PATH", data, faults)
    for name in tiers:
        if not NAME.fullmatch(name) or name in RESERVED:
            faults.append(
                Fault(
                    "--clients",
                    f"{name!r} is no name for a client; expected small "
                    "letters, digits and '-', such as 'berlin-2'",
                )
            )
    for name, path in paths.items():
        if name not in tiers:
            faults.append(Fault("--data", f"{name!r} is none of the clients {', '.join(tiers)}"))
        if not Path(path).is_absolute() or re.search(r"[\s\"'$`\\:]", path):
            faults.append(
                Fault(
                    "--data",
                    f"{path!r}: expected an absolute path on {name}, without "
                    "blanks, colons or quotes",
                )
            )
    if not 1 <= node_port <= 65535 - len(tiers):
        faults.append(Fault("--node-port", f"{node_port} leaves no room up to 65535"))
    if insecure and not is_loopback(host):
        faults.append(
            Fault(
                "--insecure",
                f"{host} is not this machine's loopback: without TLS "
                "updates could be read and changed on their way, and anybody could "
                "join; leave it out",
            )
        )
    if faults:
        raise ConfigError("fedmoe deploy", faults)
    nodes = [
        Node(name, i, tier, paths.get(name), node_port + i)
        for i, (name, tier) in enumerate(tiers.items())
    ]
    return Fleet(host, port, tuple(nodes), insecure)


def _address(server: str, faults: list[Fault]) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[::1]` or `[::1]:PORT`."""
    host, port = server, ""
    if match := re.fullmatch(r"\[(.*)\](?::(.*))?", server):
        host, port = match[1], match[2] or ""
    elif server.count(":") == 1:
        host, port = server.split(":")
    try:
        ip_address(host)
    except ValueError:
        if not HOST.fullmatch(host):
            faults.append(
                Fault(
                    "--server",
                    f"{host!r} is no host; expected a name or an address, "
                    "as clients reach it: fed.example.org:8443",
                )
            )
    default = SUPERLINK_PORT if is_loopback(host) else PUBLIC_PORT
    if not port:
        return host, default
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        faults.append(Fault("--server", f"{port!r} is no port; expected 1 to 65535"))
        return host, default
    return host, int(port)


def _pairs(option: str, form: str, given: Sequence[str], faults: list[Fault]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in filter(None, given):
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            faults.append(Fault(option, f"{text!r}: expected {form}"))
        elif name in pairs:
            faults.append(Fault(option, f"{name!r} is named twice"))
        else:
            pairs[name] = value
    return pairs

"""The participants of a deployment: the server's address, and every client's name and tier."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from fedmoe.errors import ConfigError, Fault

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
"""A client's name is also that of a folder, a service and a container."""
HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")
RESERVED = {"superlink", "proxy", "server", "venv"}
AddFault = Callable[[str, str], None]
PUBLIC_PORT, SUPERLINK_PORT = 8443, 8000


@dataclass(frozen=True)
class Node:
    """A client's machine: its number in the experiment, its tier, and the path of its data."""

    name: str
    number: int
    tier: str
    data: str | None
    port: int
    """The port of its SuperNode's own interface on loopback; two on one machine need two."""


@dataclass(frozen=True)
class Fleet:
    """The server and its clients."""

    host: str
    port: int
    nodes: tuple[Node, ...]
    insecure: bool = False

    @property
    def loopback(self) -> bool:
        """True where all of it is on one machine, which needs no reverse proxy."""
        return is_loopback(self.host)

    @property
    def superlink_port(self) -> int:
        """The port of the SuperLink, always on loopback; elsewhere a proxy is in front of it."""
        if self.loopback:
            return self.port
        return SUPERLINK_PORT if self.port != SUPERLINK_PORT else SUPERLINK_PORT + 1

    @property
    def superlink_host(self) -> str:
        """The loopback address of the SuperLink."""
        return self.host if self.loopback else "127.0.0.1"

    @property
    def address(self) -> str:
        """The address that clients connect to."""
        return address(self.host, self.port)


def is_loopback(host: str) -> bool:
    """Return whether a name or an address never leaves its machine."""
    return ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def fleet_of(
    server: str, clients: Sequence[str], data: Sequence[str], node_port: int, insecure: bool
) -> Fleet:
    """Return the fleet that the command line names.

    Args:
        server: `HOST[:PORT]`.
        clients: each `NAME=TIER`, or several with commas between them.
        data: each `NAME=PATH`, or several with blanks between them.
        node_port: the port of the first client's SuperNode.
        insecure: without TLS.

    Raises:
        ConfigError: with every fault of the arguments.
    """
    faults: list[Fault] = []

    def fault(option: str, message: str) -> None:
        faults.append(Fault(option, message))

    host, port = _server(server, fault)
    tiers = _pairs("--clients", "NAME=TIER", [p for c in clients for p in c.split(",")], fault)
    paths = _pairs("--data", "NAME=PATH", [p for d in data for p in d.split()], fault)
    for name in tiers:
        if not NAME.fullmatch(name) or name in RESERVED:
            expected = "small letters, digits and '-', such as 'berlin-2'"
            fault("--clients", f"{name!r} is no name for a client; expected {expected}")
    for name, path in paths.items():
        if name not in tiers:
            fault("--data", f"{name!r} is none of the clients {', '.join(tiers)}")
        if not Path(path).is_absolute() or re.search(r"[\s\"'$`\\:=]", path):
            expected = f"an absolute path on {name}, without blanks, colons or quotes"
            fault("--data", f"{path!r}: expected {expected}")
    if not 1 <= node_port <= 65535 - len(tiers):
        fault("--node-port", f"{node_port} leaves no room up to 65535")
    if insecure and not is_loopback(host):
        fault(
            "--insecure",
            f"{host} is not this machine's loopback: without TLS updates could be read and "
            "changed on their way, and anybody could join; leave it out",
        )
    if faults:
        raise ConfigError("fedmoe deploy", faults)
    nodes = [
        Node(name, i, tier, paths.get(name), node_port + i)
        for i, (name, tier) in enumerate(tiers.items())
    ]
    return Fleet(host, port, tuple(nodes), insecure)


def _server(server: str, fault: AddFault) -> tuple[str, int]:
    """Return host and port of `HOST`, `HOST:PORT`, `::1`, `[::1]` or `[::1]:PORT`."""
    bare = server.count(":") > 1 and "[" not in server
    try:
        parts = urlsplit(f"//[{server}]" if bare else f"//{server}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        fault("--server", f"{server!r}: {error}")
        return server, 0
    if (not _is_address(host) and not HOST.fullmatch(host)) or parts.path:
        expected = "a name or an address, as clients reach it: fed.example.org:8443"
        fault("--server", f"{server!r} is no host; expected {expected}")
    if port == 0:
        fault("--server", "'0' is no port; expected 1 to 65535")
    return host, port or (SUPERLINK_PORT if is_loopback(host) else PUBLIC_PORT)


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def _pairs(option: str, form: str, given: Sequence[str], fault: AddFault) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in filter(None, given):
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            fault(option, f"{text!r}: expected {form}")
        elif name in pairs:
            fault(option, f"{name!r} is named twice")
        else:
            pairs[name] = value
    return pairs

"""A node's description of itself, and whether it fits this server; see `clients/about.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedmoe.errors import WireError, quoted
from fedmoe.messages.rows import WITHHELD
from fedmoe.section import section

Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+!-]{1,40}$")]

_OWN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}=[0-9a-f]{16}"
ROWS = rf"^({_OWN}(,{_OWN})*)?$"
BOUND = ("torch", "transformers")
"""Libraries whose minor versions change an update bitwise."""


@section
class About:
    """A node's description of itself, which proves nothing: the SuperLink decides who may connect.
    A name is compared with the one that the node's key was registered with, if it was."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,60}$")]
    """Its owner's name for it; may be empty. ASCII, as all that is compared: no name looks like
    another one."""
    clients: Annotated[str, Field(pattern=r"^([0-9]{1,9}(,[0-9]{1,9})*)?$", max_length=10**6)]
    """Clients whose data is stored there; empty if it takes any client's task."""
    rows: Annotated[str, Field(pattern=ROWS, max_length=10**6)]
    """Clients whose own rows are there, by name, each with a digest of them."""
    data: Annotated[str, Field(pattern=r"^([0-9a-f]{16}|missing)?$")]
    """A digest of the file that all nodes share out; empty if there is none."""
    template: Annotated[str, Field(pattern=r"^([0-9a-f]{16}|auto|chat|plain|missing)?$")]
    """A digest of the file that `text.template` names there, or its word."""
    code: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
    device: Annotated[str, Field(min_length=1, max_length=100)]
    memory_bytes: Annotated[int, Field(ge=0, le=2**50)]
    """0 if unknown."""
    threads: Annotated[int, Field(ge=1, le=2**16)]
    processor: Annotated[str, Field(min_length=1, max_length=100)]
    """Architecture, vendor and torch's kernels, as `x86_64 GenuineIntel AVX512`."""
    python: Version
    fedmoe: Version
    flwr: Version
    torch: Version
    transformers: Version

    @property
    def held(self) -> frozenset[int]:
        """The clients whose data is stored there."""
        return frozenset(int(number) for number in self.clients.split(",") if number)

    @property
    def own(self) -> dict[str, str]:
        """Return the digest of each client's own rows, by name."""
        return dict(pair.split("=") for pair in self.rows.split(",") if pair)

    def __str__(self) -> str:
        held = ", ".join(self.own) or self.clients
        return (
            f"{quoted(self.device)}, {self.memory_bytes / 1e9:.1f} GB, {self.threads} threads of "
            f"{quoted(self.processor)}; "
            f"clients {held[:60] or 'any'}; python {self.python}, torch {self.torch}, "
            f"transformers {self.transformers}, flwr {self.flwr}, fedmoe {self.fedmoe} {self.code}"
        )


@dataclass(frozen=True)
class Expected:
    """The requirements on a node that gets tasks."""

    code: str
    num_clients: int
    allow_versions: bool = False
    assigned: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """By node name: the clients that this node alone serves."""
    owners: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The same where clients are known by name."""
    components: str = "[]"
    """Foreign components that it must have; see `config.components.told_to_nodes`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What nodes are told of the experiment's data; see `data_told`."""
    data_digest: str = ""
    """Of the file here that all share out; empty if there is none."""
    template: str = ""
    """As in `About`; empty if any will do."""

    def check(self, values: Mapping[str, Any], registered: str = "") -> About:
        """Return the description of a node, checked.

        Args:
            values: its description.
            registered: the name that its key was registered with; empty if there is none.

        Raises:
            WireError: a value is missing, too long or of a wrong type; another node's name; other
                code, or other versions of libraries that change an update bitwise; clients that
                do not exist, or are not its. The message names both sides.
        """
        try:
            about = About(**values)
        except ValidationError as error:
            faults = "; ".join(f"{e['loc'][-1]!s:.40}: {e['msg']:.80}" for e in error.errors()[:3])
            raise WireError(f"its description is not usable: {faults}") from None
        except (TypeError, ValueError) as error:  # a name that is no field's, or a number's text
            raise WireError(f"its description is not usable: {error!s:.200}") from None
        if registered and about.name != registered:
            raise WireError(
                f"it calls itself {about.name!r}, and its key was registered for "
                f"{registered!r}: set `name` in its node config, or register its key again"
            )
        if about.code != self.code:
            raise WireError(
                f"it runs code {about.code}, the server {self.code}; install the same fedmoe on "
                "both, and restart the SuperLink from a folder that holds no other `clients/`"
            )
        self._check_versions(about)
        self._check_data(about)
        self._check_clients(about, registered)
        self._check_owners(about, registered)
        return about

    def _check_versions(self, about: About) -> None:
        if self.allow_versions:
            return
        for library in BOUND:
            here, there = version(library), getattr(about, library)
            if minor(here) != minor(there):
                raise WireError(
                    f"it runs {library} {there}, the server {here}: its updates would not be "
                    f"bitwise identical; install {library} {minor(here)}, or allow it with "
                    "allow_versions=true in the run config"
                )

    def _check_data(self, about: About) -> None:
        if self.data_digest and about.data != self.data_digest:
            there = "it has no such file" if about.data == "missing" else f"its is {about.data}"
            raise WireError(
                f"data.path here has the digest {self.data_digest}, and {there}: `partition` "
                "shares out one data set, which every node and the server must hold whole. For "
                "rows that stay with their owners use data.name=federated, and set `data` in each "
                "node's config"
            )

        if self.template and about.template != self.template:
            raise WireError(
                f"text.template is {self.template} here, and {about.template or 'unknown'} there "
                "(a word, or the digest of a .jinja file): it would word its rows otherwise; copy "
                "the server's file to the node"
            )

    def _check_clients(self, about: About, registered: str) -> None:
        if over := sorted(client for client in about.held if client >= self.num_clients):
            raise WireError(
                f"it holds client {over[0]}; this run's clients are 0..{self.num_clients - 1}"
            )
        missing = sorted(self.assigned.get(about.name, frozenset()) - about.held)
        if about.held and missing:
            raise WireError(
                f"the run config's `nodes` gives it client {missing[0]}; its own config names "
                f"{about.clients}"
            )
        given = self.assigned.get(registered, frozenset())
        if registered and (strange := sorted(about.held - given)):
            raise WireError(
                f"it holds client {strange[0]}, which the run config's `nodes` does not give to "
                f"{registered!r}; give it there, or leave `clients` out of its node config"
            )
        if registered and self.num_clients and not given:
            raise WireError(
                f"its key was registered for {registered!r}, to which the run config's `nodes` "
                f"gives no client: it could answer for any; set for example nodes={registered}=0"
            )

    def _check_owners(self, about: About, registered: str) -> None:
        """Refuse owners whom the run config gives to another node, or a key's name does not cover.

        Without `nodes` a key covers the owner of its own name. One who withholds its name takes the
        place of one that the key covers.
        """
        whose = {owner: node for node, owners in self.owners.items() for owner in owners}
        mine = self.owners.get(about.name, {registered} - {*whose, ""})
        strange = sorted(about.own.keys() - mine)
        taken = [owner for owner in strange if owner in whose]
        withheld = all(owner.startswith(WITHHELD) for owner in strange)
        if taken or (registered and not (withheld and len(about.own) <= len(mine))):
            owner = (taken or strange or [*about.own])[0]
            raise WireError(
                f"it has rows of client {owner!r}, and {about.name!r} may have those of "
                f"{', '.join(sorted(mine))[:200] or 'nobody'}: name its owners in the run config, "
                f'nodes="{about.name}={owner}"'
            )


def minor(version: str) -> str:
    """Return the minor version.

    >>> minor("2.13.0+cpu")
    '2.13'
    """
    return ".".join(version.split("+")[0].split(".")[:2])

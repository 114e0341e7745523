"""The components of a configuration: where each is, whose code it is, and what nodes are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.dataclasses import is_pydantic_dataclass
from pydantic_core import to_jsonable_python

from fedmoe.config.place import kind_of, opened
from fedmoe.config.yaml_text import dump
from fedmoe.errors import ConfigError, Fault
from fedmoe.section import Open, fields
from fedmoe.section.component import PROGRAM, nowhere, reference, state
from fedmoe.section.imports import version_of
from fedmoe.section.open import FROM

IN_MEMORY = "a file for other machines cannot hold {name!r}: {why}"


@dataclass(frozen=True)
class Chosen:
    """A component that a configuration chooses."""

    path: tuple[str, ...]
    mark: Open
    value: Any
    default: Any
    """The component when the configuration names none."""

    @property
    def foreign(self) -> bool:
        """Return whether it is code from outside fedmoe."""
        return type(self.value) not in self.mark.members

    @property
    def name(self) -> str:
        """Return the name by which it is written down."""
        return reference(self.value) if self.foreign else self.value.name

    @property
    def version(self) -> str:
        """Return the version of a foreign one's code; empty if unknown, and for built-in ones."""
        return version_of(self.mark.group, self.name) if self.foreign else ""

    @property
    def bound(self) -> str:
        """Return why no file can hold it for another process; empty if one can."""
        return state(self.value)[1] or (nowhere(self.value) if self.foreign else "")


def components(config: Any) -> Iterator[Chosen]:
    """Yield the components of a section and of the sections in it.

    Example:
        >>> from fedmoe.config import Experiment
        >>> [".".join(found.path) for found in components(Experiment())][:3]
        ['rescaling', 'gating', 'data']
    """
    for name, field in fields(type(config)).items():
        value, mark = getattr(config, name), opened(kind_of(field))
        if mark and value is not None:
            default = field.get_default(call_default_factory=True)
            for each in value if isinstance(value, tuple) else (value,):
                yield Chosen((name,), mark, each, default)
        elif is_pydantic_dataclass(type(value)):
            for found in components(value):
                yield Chosen((name, *found.path), found.mark, found.value, found.default)


def foreign_code(config: Any) -> str:
    """Return the foreign components with their versions, in words; empty where there are none."""
    foreign = [found for found in components(config) if found.foreign]
    return ", ".join(f"{found.name} ({found.version or 'unknown'})" for found in foreign)


def untold(config: Any) -> list[str]:
    """Return why it cannot be told of foreign components whether they are the same in a later run.

    Those are of code without a file, such as a notebook's, or hold what no file can.
    """
    return [
        f"{'.'.join(found.path)} is {found.name!r}, and {found.bound or 'its code is in no file'}"
        for found in components(config)
        if found.foreign and (not found.version or found.bound not in ("", PROGRAM))
    ]


def told_to_nodes(config: Any) -> str:
    """Return the foreign components that clients need, as JSON: group, name and version of each."""
    needed = [f for f in components(config) if f.foreign and not f.mark.of_server(config)]
    return json.dumps([(found.mark.group, found.name, found.version) for found in needed])


def for_nodes(config: Any) -> str:
    """Return a section as YAML for clients on other machines.

    A foreign component says of which package and version it is, so that a node can refuse another
    one. What the server alone needs is left at its default.

    Raises:
        ConfigError: with every component that exists in this process alone.
    """
    tree, faults = to_jsonable_python(config), []
    for found in components(config):
        *parents, last = found.path
        place = tree
        for key in parents:
            place = place[key]
        if found.mark.of_server(config):
            place[last] = found.mark.write(found.default)
        elif why := found.bound:
            faults.append(Fault(".".join(found.path), IN_MEMORY.format(name=found.name, why=why)))
        elif found.foreign:
            written = place[last] if isinstance(place[last], list) else [place[last]]
            for each in written:
                if each["name"] == found.name:
                    each[FROM] = found.version
    if faults:
        raise ConfigError("experiment", faults)
    return dump(tree)

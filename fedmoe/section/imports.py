"""Foreign code: found by `package.module:Name` or an entry point, and its version."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

NAME = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*", re.ASCII)
"""`package.module:Name`."""


class Refused(Exception):
    """Foreign code that is not there, or may not be imported; the text says why and what to do."""


@dataclass(frozen=True)
class Imports:
    """The modules that a name in a configuration may import.

    Any that Python finds where `allowed` is None. Else those of `allowed` with all that is below
    them, and whatever an installed package offers as an entry point: so a Flower node imports
    nothing for the mere reason that a server names it.

    Example:
        >>> Imports(allowed=("my_rules",)).check("fedmoe.strategies", "my_rules.median:Median")
        'my_rules.median:Median'
        >>> Imports(allowed=("my_rules",)).check("fedmoe.strategies", "os:system")
        Traceback (most recent call last):
        ...
        fedmoe.section.imports.Refused: 'os:system' is not allowed here: ...
    """

    allowed: tuple[str, ...] | None = None
    """Prefixes of modules: `my_rules` allows `my_rules.median`, too."""

    def check(self, group: str, name: str) -> str:
        """Return `name`, or what the entry point of that name stands for, as `module:Name`.

        Imports nothing.

        Raises:
            Refused: no such entry point, more than one, or a module that is not allowed.
        """
        if ":" not in name:
            return _of_entry_point(group, name)
        if not NAME.fullmatch(name):
            raise Refused(f"{name!r} cannot be read; write package.module:Name")
        module = name.partition(":")[0]
        allowed = self.allowed is None or any(
            module == prefix or module.startswith(f"{prefix}.") for prefix in self.allowed
        )
        if not allowed and name not in {_value(point) for point in entry_points(group=group)}:
            raise Refused(
                f"{name!r} is not allowed here: no installed package has it as an entry point of "
                f"{group!r}, and this node's config does not allow it; install the package, or "
                f'add allow="{module.partition(".")[0]}" to the node config'
            )
        return name

    def check_version(self, group: str, name: str, version: str) -> None:
        """Refuse a name that stands for other code here than `version`; see `version_of`.

        Raises:
            Refused: see `check`; or another version, or none, is here.
        """
        here = version_of(group, self.check(group, name))
        if here != version:
            raise Refused(
                f"{name!r} is to be of {version or 'an unknown version'}, and here is "
                f"{here or 'none'}; install the same on both sides"
            )

    def find(self, group: str, name: str) -> Any:
        """Return the object that a name stands for.

        Raises:
            Refused: see `check`; or the module cannot be imported, or has no such attribute.
        """
        reference = self.check(group, name)
        module_name, _, path = reference.partition(":")
        found = _imported(module_name, reference)
        for part in path.split("."):
            if not hasattr(found, part):
                near = get_close_matches(part, [n for n in dir(found) if n[0] != "_"], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise Refused(f"module {module_name!r} has no {path!r}{hint}")
            found = getattr(found, part)
        return found


ANYWHERE = Imports()
"""Imports whatever Python finds: for configurations of one's own."""


def names_of(group: str) -> list[str]:
    """Return the names of the entry points that installed packages offer in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def version_of(group: str, reference: str) -> str:
    """Return which code `module:Name` is here: `package==version`, without importing it.

    A module that belongs to no installed package is told by a digest of its own file,
    `sha256:...`; other files that it uses are not looked at. Empty where there is no file.
    """
    for point in entry_points(group=group):
        if _value(point) == reference and point.dist:
            return f"{point.dist.name}=={point.dist.version}"
    module = reference.partition(":")[0]
    if (file := _file_of(module)) is None:
        return ""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return " ".join(_packages(module, file)) or f"sha256:{digest}"


def _of_entry_point(group: str, name: str) -> str:
    found = sorted({_value(point) for point in entry_points(group=group) if point.name == name})
    if not found:
        raise Refused(f"no installed package has {name!r} as an entry point of {group!r}")
    if len(found) > 1:
        raise Refused(f"{name!r} may be {' or '.join(found)}; write the one that is meant")
    return found[0]


def _value(point: EntryPoint) -> str:
    return f"{point.module}:{point.attr}"


def _imported(module: str, reference: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if f"{module}.".startswith(f"{missing}."):
            raise Refused(
                f"there is no module {missing!r} here, which {reference!r} names; install its "
                "package, or run `fedmoe` in the folder that holds it"
            ) from error
        raise Refused(f"{module!r} needs the module {missing!r}, which is not here") from error
    except Exception as error:
        raise Refused(f"{module!r} cannot be imported: {type(error).__name__}: {error}") from error


def _packages(module: str, file: Path) -> list[str]:
    """The installed packages beside a module that say it is theirs."""
    top, inside = module.partition(".")[0], module.count(".") + (file.stem == "__init__")
    of_top = re.compile(rf"^{re.escape(top)}(/|\.\w+,)", re.MULTILINE)
    found = {
        f"{package.name}=={package.version}"
        for package in distributions(path=[str(file.parents[inside])])
        if top in (package.read_text("top_level.txt") or "").split()
        or of_top.search(package.read_text("RECORD") or "")
    }
    return sorted(found)


def _file_of(module: str) -> Path | None:
    """The file of a module; its parent packages may be imported for it."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec and spec.has_location else None
    return Path(file) if file and Path(file).is_file() else None

"""Short forms in a config: a file's path for a section, and a bare name for a component."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fedmoe.config.place import Place, opened
from fedmoe.config.yaml_text import read_yaml
from fedmoe.errors import ConfigError, Fault
from fedmoe.system.shipped import find_beside


@dataclass(frozen=True)
class OwnFile:
    """Marks a section in the schema: `Annotated[Device, OwnFile()]` takes the path of a file."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "string", "description": "a YAML file's path"}]}


def read_files(tree: Any, place: Place, folder: Path, *, final: bool) -> tuple[Any, list[Fault]]:
    """Return `tree` with every short form written out.

    The content of a file stands in place of its path, and `{name: x}` in place of a component's
    bare name.

    Args:
        folder: where relative paths start.
        final: a file that cannot be read is a fault. Else its path stays, starting at `folder`:
            an override may still replace it.
    """
    faults: list[Fault] = []
    return _read(tree, place, folder, final, "", faults), faults


def _read(
    tree: Any, place: Place, folder: Path, final: bool, path: str, faults: list[Fault]
) -> Any:
    if isinstance(tree, str) and opened(place.kind):
        return {"name": tree}
    if isinstance(tree, str) and _in_own_file(place.kind):
        file = find_beside(tree, folder)
        try:
            return read_yaml(file)
        except ConfigError as error:
            if final:
                hint = _neighbour(file)
                faults += [Fault(path, f"{error.where}: {f}{hint}") for f in error.faults]
            return str(file)
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        read = {
            key: _read(
                value, place.child(key, tree), folder, final, f"{path}.{key}".strip("."), faults
            )
            for key, value in items
        }
        return read if isinstance(tree, dict) else [*read.values()]
    return tree


def _in_own_file(kind: Any) -> bool:
    return get_origin(kind) is Annotated and any(isinstance(a, OwnFile) for a in get_args(kind)[1:])


def _neighbour(file: Path) -> str:
    """The file that was likely meant, if there is none of this name."""
    if file.exists() or not file.parent.is_dir():
        return ""
    names = [other.name for other in file.parent.glob("*.yaml")]
    near = get_close_matches(file.name, names, n=1)
    return f"; did you mean {file.parent / near[0]}?" if near else ""

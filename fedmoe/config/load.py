"""From a YAML file and dotted overrides to a checked section, all faults at once, and back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_jsonable_python

from fedmoe.config.explain import explain
from fedmoe.config.files import read_files
from fedmoe.config.overrides import apply_overrides
from fedmoe.config.place import Place, fill
from fedmoe.config.yaml_text import dump, read_yaml
from fedmoe.errors import ConfigError
from fedmoe.section import ANYWHERE, Imports
from fedmoe.system.shipped import find_config

T = TypeVar("T")


def load(
    cls: type[T], path: Path | str, overrides: Sequence[str] = (), imports: Imports = ANYWHERE
) -> T:
    """Return the section of class `cls` that a YAML file and its overrides describe.

    `path` may also be the name of a shipped config, such as `quickstart`.
    A mapping in the file is laid over the default at its place: keys it leaves out keep their
    default, and so does `name` where the section is one of a union. Lists and free mappings
    are replaced whole. Overrides come last, in their order, and reach into all of these. Where
    the path of a file may stand for a section (`config.files`), one in the file starts at the
    file's folder, one in an override at the working folder. Components from outside fedmoe are
    imported as `imports` allows.

    Raises:
        ConfigError: with every fault of the file's content and of the overrides, sorted by path;
            or why the file cannot be read as one YAML mapping.
    """
    path = find_config(path)
    where, root = str(path), Place(cls, imports=imports)
    tree, _ = read_files(read_yaml(path), root, path.parent, final=False)
    tree, faults = apply_overrides(tree, root, overrides)
    tree, unread = read_files(tree, root, Path(), final=True)
    faults += unread
    tree = fill(root, tree)
    try:
        # Strict JSON, unlike strict Python, takes a list for a tuple and text for a path.
        config = TypeAdapter(cls).validate_json(json.dumps(tree), context=imports)
    except ValidationError as error:
        known = {fault.path for fault in unread}  # what stands there is still a path
        found = [fault for fault in explain(error, root, tree) if fault.path not in known]
        raise ConfigError(where, sorted(faults + found)) from None
    if faults:
        raise ConfigError(where, sorted(faults))
    return config


def to_yaml(config: Any) -> str:
    """Return every value of a section as YAML; loading it gives an equal section."""
    return dump(to_jsonable_python(config))


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema by which an editor completes and checks a YAML file for `cls`."""
    return TypeAdapter(cls).json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """A mapping may leave out its name, so it can fit several members of a union: any of them."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        out = super().tagged_union_schema(schema)
        if "oneOf" in out:
            out["anyOf"] = out.pop("oneOf")
        return out

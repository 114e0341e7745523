"""Where a key of the YAML tree lands in the schema: its type, its default, and its section."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from fedmoe.section import ANYWHERE, Imports, Open, fields, tag

__all__ = ["Place", "alternatives", "fields", "fill", "key_kind", "known_paths", "members"]
__all__ += ["opened", "sections", "tag"]


@dataclass(frozen=True)
class Place:
    """One place in the schema: what may stand there, and what does when the YAML is silent."""

    kind: Any
    default: Any = PydanticUndefined
    imports: Imports = ANYWHERE
    """The imports that names of components are allowed."""

    def section(self, tree: Any) -> type | None:
        """Return the section class that `tree` fills, None where that is open or none fits.

        Of a union it is the member the YAML names, else the member that is the default.
        """
        options, mark = sections(self.kind), opened(self.kind)
        if len(options) == 1 and mark is None:
            return options[0]
        if mark and isinstance(tree, Mapping) and "name" in tree:
            return mark.section(tree["name"], self.imports)
        if not isinstance(tree, Mapping) or "name" not in tree:
            return type(self.default) if type(self.default) in options else None
        return next((option for option in options if tag(option) == tree["name"]), None)

    def child(self, key: str | int, tree: Any) -> "Place":
        """Return the place under `key`; anything may stand under a key that nobody knows."""
        section, mark = self.section(tree), opened(self.kind)
        if mark and mark.several and isinstance(key, int):
            return Place(self.kind, imports=self.imports)
        if section is None:
            return Place(_item_kind(self.kind, key), imports=self.imports)
        field = fields(section).get(str(key))
        if field is None:
            return Place(Any)
        if type(self.default) is section:
            default = getattr(self.default, str(key))
        else:
            default = field.get_default(call_default_factory=True)
        return Place(kind_of(field), default, self.imports)


def fill(place: Place, tree: Any) -> Any:
    """Return `tree` with what its sections leave out taken from the default at that place.

    A file holds only what differs from the defaults, so a section that is mentioned keeps the
    other values of its default instance, name included. Lists and free mappings are replaced
    whole. When the name differs from the default's, nothing of the default is kept.
    """
    if isinstance(tree, list):
        return [fill(place.child(i, tree), item) for i, item in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    given = {key: fill(place.child(key, tree), value) for key, value in tree.items()}
    if type(place.default) is place.section(tree):
        return to_jsonable_python(place.default) | given
    return given


def known_paths(place: Place, tree: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key that may be set, given the union members chosen in `tree`."""
    section = place.section(tree)
    for name in fields(section) if section else ():
        child = place.child(name, tree)
        value = tree.get(name) if isinstance(tree, dict) else None
        yield (*prefix, name)
        # An optional section that is off ends the walk: it may hold its own kind.
        if value is not None or child.default is not None:
            yield from known_paths(child, value, (*prefix, name))


def members(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, flat and without annotations; else `kind` alone.

    Those of an open field are its built-in components.
    """
    if mark := _mark(kind):
        return mark.members
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for arg in get_args(kind) for member in members(arg))
    return (kind,)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union without None."""
    return tuple(member for member in members(kind) if member is not NoneType)


def sections(kind: Any) -> tuple[type, ...]:
    """Return the section classes among the members of a union."""
    return tuple(m for m in members(kind) if isinstance(m, type) and is_pydantic_dataclass(m))


def kind_of(field: FieldInfo) -> Any:
    """Return the type of a field, with its mark where it takes components."""
    mark = next((m for m in field.metadata if isinstance(m, Open)), None)
    return Annotated[field.annotation, mark] if mark else field.annotation


def opened(kind: Any) -> Open | None:
    """Return the mark of a type that takes components; None for any other."""
    optional = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next(filter(None, map(_mark, optional)), None)


def _mark(kind: Any) -> Open | None:
    marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Open)), None)


def key_kind(kind: Any) -> Any:
    """Return the type of the keys of a free mapping."""
    origins = ((get_origin(member), get_args(member)) for member in members(kind))
    return next((args[0] for origin, args in origins if origin is dict), str)


def _item_kind(kind: Any, key: str | int) -> Any:
    for member in members(kind):
        origin, args = get_origin(member), get_args(member)
        if not isinstance(origin, type) or not args:
            continue
        if issubclass(origin, Mapping):
            return args[1]
        if origin is tuple and Ellipsis not in args:
            return args[key] if isinstance(key, int) and key < len(args) else Any
        return args[0]
    return Any

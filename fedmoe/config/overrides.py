"""Dotted overrides: `budget.tiers.high.top_k=8` written into the plain tree of the YAML file."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from fedmoe.config.place import Place, alternatives, sections
from fedmoe.config.words import show
from fedmoe.config.yaml_text import parse
from fedmoe.errors import ConfigError, Fault


def apply_overrides(
    tree: dict[str, Any], root: Place, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Fault]]:
    """Return a copy of `tree` with the overrides set, in their order, and the faults among them.

    A value is read as YAML, so `a.list=[1, 2]` is a list and `a.b=` is null. A number as a key
    picks an item of a list. A list or free mapping that the file leaves out starts as its
    default, so one item of it can be changed.
    """
    tree, faults = deepcopy(tree), []
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals:
            faults.append(Fault(text, "not an override; expected key=value"))
        elif not all(keys):
            faults.append(Fault(text, "an empty key; expected section.key=value"))
        else:
            faults += _set(tree, root, keys, value)
    return tree, faults


def _set(tree: dict[str, Any], place: Place, keys: list[str], text: str) -> list[Fault]:
    path, box = ".".join(keys), tree
    try:
        value = parse(text, path)
        for depth, key in enumerate(keys[:-1], start=1):
            slot = _slot(box, key)
            place = place.child(slot, box)
            box = _open(box, slot, place)
            if not isinstance(box, dict | list):
                raise KeyError(f"{'.'.join(keys[:depth])} is {show(box)}, which holds no keys")
        slot = _slot(box, keys[-1])
        if isinstance(value, dict | list) and alternatives(place.child(slot, box).kind) == (str,):
            return [Fault(path, f"expected text{_quoted(path, text)}")]
        box[slot] = value
    except ConfigError as error:
        return [Fault(path, fault.message + _quoted(path, text)) for fault in error.faults]
    except KeyError as error:
        return [Fault(path, error.args[0])]
    return []


def _quoted(path: str, text: str) -> str:
    """Return how a text that YAML takes for a mapping or a list is written in a shell."""
    why = f"that begins with {text[:1]}" if text[:1] in ("{", "[") else "with signs of YAML"
    return f"; a text {why} needs quotes of its own: '{path}=\"{text}\"'"


def _slot(box: Any, key: str) -> Any:
    if isinstance(box, dict):
        return key
    if not key.isdecimal() or int(key) >= len(box):
        raise KeyError(f"no item {key!r} in a list of {len(box)}; items count from 0")
    return int(key)


def _open(box: Any, slot: Any, place: Place) -> Any:
    """Return the value in `slot`, setting it to its default if the file says nothing."""
    value = box.get(slot) if isinstance(box, dict) else box[slot]
    if value is not None:
        return value
    if place.default is None or place.default is PydanticUndefined or sections(place.kind):
        # The defaults of a section are filled in later, when its name is settled.
        box[slot] = {}
    else:
        box[slot] = to_jsonable_python(place.default)
    return box[slot]

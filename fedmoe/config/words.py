"""Words for values, types and choices, and a guess at what a misspelt key was meant to be."""

from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from fedmoe.config.place import Place, alternatives, known_paths, members, opened, sections
from fedmoe.errors import not_one_of, show
from fedmoe.section import fields, tag

__all__ = ["describe", "literals", "not_one_of", "show", "unknown_key"]

NOUNS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    NoneType: "null",
}
CLOSE_ENOUGH = 0.65
"""Likeness of a key in the same section; `router` is none for `dropout`."""
# Across the whole tree a chance likeness is likelier than within one section.
CLOSE_ENOUGH_ELSEWHERE = 0.75


def describe(kind: Any) -> str:
    """Return what may stand where a value of type `kind` is asked for."""
    names = [repr(tag(section)) for section in sections(kind)]
    if mark := opened(kind):
        nouns = [f"one of {', '.join([*names, 'package.module:Name'])}, or a mapping with a name"]
        nouns += ["a list of them"] if mark.several else []
    elif len(names) > 1:
        nouns = [f"a mapping with a name among {', '.join(names)}"]
        nouns += [_noun(member) for member in members(kind) if member not in sections(kind)]
    else:
        nouns = [_noun(member) for member in members(kind)]
    return " or ".join(dict.fromkeys(nouns))


def literals(kind: Any) -> list[Any]:
    """Return the allowed values of a type made of literals alone, else an empty list."""
    options = alternatives(kind)
    if any(get_origin(option) is not Literal for option in options):
        return []
    return [choice for option in options for choice in get_args(option)]


def unknown_key(
    key: str, path: tuple[str, ...], place: Place, section_tree: Any, root: Place, tree: Any
) -> str:
    """Return that `place` has no such key, and which key was likely meant, here or elsewhere."""
    section = place.section(section_tree)
    assert section is not None, (key, path)
    if near := get_close_matches(key, fields(section), n=1, cutoff=CLOSE_ENOUGH):
        return f"unknown key; did you mean {'.'.join((*path, near[0]))}?"
    if owners := [tag(other) for other in sections(place.kind) if key in fields(other)]:
        chosen = tag(section) or section_tree["name"]
        return f"unknown key; {owners[0]!r} has it, {chosen!r} has not"
    # A reversed walk lets the first of several keys with the same name win.
    elsewhere = {known[-1]: known for known in reversed(list(known_paths(root, tree)))}
    initials = {_initials(name): name for name in elsewhere if "_" in name}
    near = get_close_matches(key, elsewhere, n=1, cutoff=CLOSE_ENOUGH_ELSEWHERE)
    if name := near[0] if near else initials.get(key):
        return f"unknown key; did you mean {'.'.join(elsewhere[name])}?"
    return "unknown key"


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _noun(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(show, get_args(kind)))
    if sections(kind):
        return "a mapping"
    base = get_origin(kind) or kind
    return NOUNS.get(base, getattr(base, "__name__", str(base)))

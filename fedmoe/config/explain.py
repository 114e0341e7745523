"""Pydantic's errors in the user's words: the path, the value, what is allowed."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedmoe.config.place import Place, alternatives, key_kind, opened, sections, tag
from fedmoe.config.words import describe, literals, not_one_of, show, unknown_key
from fedmoe.errors import Fault, Unfit

BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
WRONG_TYPE = ("_type", "_parsing", "_from_float", "literal_error")
KEY_STEP = "[key]"


def explain(error: ValidationError, root: Place, tree: dict[str, Any]) -> list[Fault]:
    """Return one fault a path, without the union tags that pydantic puts into its paths.

    Of a value that fails every alternative of a union (`int | Literal["auto"]`) the fault that
    speaks of its size is kept before the one that speaks of its type.
    """
    found: dict[str, str] = {}
    for item in sorted(
        error.errors(include_url=False), key=lambda e: e["type"].endswith(WRONG_TYPE)
    ):
        path, message = _fault(item, root, tree)
        raised = item.get("ctx", {}).get("error")
        for fault in raised.faults if isinstance(raised, Unfit) else ():
            found.setdefault(".".join((*path, fault.path)), fault.message)
        if not isinstance(raised, Unfit):
            found.setdefault(".".join(path), message)
    return [Fault(path, message) for path, message in found.items()]


def _fault(item: ErrorDetails, root: Place, tree: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    loc, kind = item["loc"], item["type"]
    if loc and loc[-1] == KEY_STEP:
        path, place, _ = _locate(loc[:-2], root, tree)
        return (*path, str(loc[-2])), f"expected {describe(key_kind(place.kind))} as the key"
    if kind in UNKNOWN_KEY:
        path, place, section_tree = _locate(loc[:-1], root, tree)
        key = str(loc[-1])
        return (*path, key), unknown_key(key, path, place, section_tree, root, tree)
    path, place, value = _locate(loc, root, tree)
    if kind == "component":
        return (*path, "name"), item["msg"]
    if kind.startswith("union_tag"):
        names = [tag(section) for section in sections(place.kind)]
        if "name" in value:
            return (*path, "name"), not_one_of(value["name"], names)
        return (*path, "name"), f"missing; expected one of {', '.join(map(repr, names))}"
    return path, _message(item, place, value)


def _locate(loc: tuple[Any, ...], place: Place, tree: Any) -> tuple[tuple[str, ...], Place, Any]:
    """The path a user would write for `loc`, the place it leads to, and what the tree has there."""
    path, steps = (), list(loc)
    while steps:
        options = alternatives(place.kind)
        if len(options) > 1 and opened(place.kind) is None:
            if len(options) != len(sections(place.kind)):
                # What follows names an alternative by its type; the place speaks for all of them.
                break
            steps.pop(0)
        if steps:
            key = steps.pop(0)
            place, tree = place.child(key, tree), _item(tree, key)
            path = (*path, str(key))
    return path, place, tree


def _item(tree: Any, key: str | int) -> Any:
    if isinstance(tree, list) and isinstance(key, int):
        return tree[key] if key < len(tree) else None
    return tree.get(str(key)) if isinstance(tree, dict) else None


def _message(item: ErrorDetails, place: Place, value: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return f"missing; expected {describe(place.kind)}"
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind in BOUNDS:
        found = f"{len(value)} items" if isinstance(value, list) else show(value)
        return f"found {found}, expected {BOUNDS[kind].format(**context)}"
    if not kind.endswith(WRONG_TYPE):
        return item["msg"]
    if choices := literals(place.kind):
        return not_one_of(value, choices)
    quotes = str in alternatives(place.kind) and isinstance(value, bool | int | float)
    hint = "; put it in quotes" if quotes else ""
    return f"found {show(value)}, expected {describe(place.kind)}{hint}"

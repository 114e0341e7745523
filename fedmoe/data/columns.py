"""Rows of instruction data -> examples: which columns hold the prompt, the response, the label."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fedmoe.data.examples import Example
from fedmoe.errors import DataError

MAX_FAULTS = 10

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands ("data.jsonl:17") and what is in it."""

_PROMPTS = (
    "{instruction}\n\n{input}",
    "{instruction}\n\n{context}",
    "{instruction}",
    "{prompt}",
    "{question}",
)
_RESPONSES = ("output", "response", "completion", "answer")


@dataclass(frozen=True)
class Columns:
    """Where to find the parts of an example in a row."""

    prompt: str
    """Template with columns in braces, the first of which may not be empty; or `messages`."""
    response: str
    label: str

    @property
    def of_prompt(self) -> list[str]:
        return re.findall(r"\{([^{}]+)\}", self.prompt)


def find_columns(
    source: str, present: Sequence[str], *, prompt: str, response: str, label: str
) -> Columns:
    """Return the columns that were named, and for those left empty the usual ones.

    Raises:
        DataError: a named column is missing, or no usual name is there; lists what is.
    """
    prompt = prompt if not prompt or "{" in prompt else f"{{{prompt}}}"
    if not prompt and not response and "messages" in present:
        return Columns("messages", "messages", label)
    usual = (p for p in _PROMPTS if set(Columns(p, "", "").of_prompt) <= set(present))
    prompt = prompt or next(usual, "")
    response = response or next((name for name in _RESPONSES if name in present), "")
    columns = Columns(prompt, response, label)

    faults = [
        f"{what}: no column found" for what in ("prompt", "response") if not getattr(columns, what)
    ]
    for name in [*columns.of_prompt, response, label]:
        if name and name not in present:
            near = get_close_matches(name, present, n=1)
            faults.append(f"no column {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if faults:
        raise DataError(
            f"{source}: {'; '.join(faults)}; the columns are {', '.join(map(repr, present))};"
            " set prompt and response to the ones to use"
        )
    return columns


def to_examples(source: str, rows: Iterable[Row], columns: Columns) -> tuple[Example, ...]:
    """Return one example per row.

    Raises:
        DataError: rows with missing, empty or non-text fields, the first ten of them by place.
    """
    examples, faults = [], []
    for where, row in rows:
        parts, row_faults = _read(row, columns)
        faults += [f"{where}: {fault}" for fault in row_faults]
        if not row_faults:
            examples.append(Example(*parts))
    if faults:
        raise too_many(source, "row(s) cannot be used", faults)
    if not examples:
        raise DataError(f"{source}: no rows; expected at least one")
    return tuple(examples)


def too_many(source: str, what: str, faults: Sequence[str]) -> DataError:
    """Return an error that lists the first ten faults and counts the rest."""
    more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    lines = [f"{source}: {len(faults)} {what}", *faults[:MAX_FAULTS], *more]
    return DataError("\n  ".join(lines))


def _read(row: Mapping[str, Any], columns: Columns) -> tuple[list[str], list[str]]:
    """Return prompt, response and label of a row, and what is wrong with them."""
    if columns.prompt == "messages":
        row, columns = _first_exchange(row), Columns("{user}", "assistant", columns.label)
    first, *others = columns.of_prompt
    faults = []
    for name in filter(None, [first, columns.response, columns.label]):
        value = row.get(name)
        if not isinstance(value, str):
            got = "is missing" if value is None else f"is {type(value).__name__} {value!r:.40}"
            faults.append(f"{name!r} {got}; expected text")
        elif not value.strip():
            faults.append(f"{name!r} is empty")
    for name in others:
        if not isinstance(row.get(name) or "", str):
            faults.append(f"{name!r} is {type(row[name]).__name__}; expected text")
    if faults:
        return [], faults
    filled = re.sub(r"\{([^{}]+)\}", lambda match: row.get(match[1]) or "", columns.prompt)
    label = row[columns.label] if columns.label else ""
    return [filled.strip(), row[columns.response].strip(), label], []


def _first_exchange(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a conversation to what the user first said and the first reply in words.

    A reply without words calls a function, and the reply in words follows.
    """
    flat = {name: value for name, value in row.items() if name not in ("user", "assistant")}
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and message.get("role") in ("user", "assistant"):
            flat[message["role"]] = flat.get(message["role"]) or message.get("content")
    return flat

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


@dataclass(frozen=True)
class Unusable:
    """A row that makes no example, and why."""

    where: str
    fault: str
    empty: bool = False
    """True if its only fault is that it has no prompt or no response."""

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}"


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


def to_examples(rows: Iterable[Row | Unusable], columns: Columns) -> list[Example | Unusable]:
    """Return an example for each row, or why there is none."""
    return [row if isinstance(row, Unusable) else _example(*row, columns) for row in rows]


def columns_of(rows: Iterable[Row | Unusable]) -> list[str]:
    """Return the names of the columns that any row has."""
    found = [row[1] for row in rows if not isinstance(row, Unusable)]
    return list(dict.fromkeys(name for row in found for name in row))


def too_many(source: str, what: str, faults: Sequence[object]) -> DataError:
    """Return an error that lists the first ten faults and counts the rest."""
    more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    lines = [f"{source}: {len(faults)} {what}", *map(str, faults[:MAX_FAULTS]), *more]
    return DataError("\n  ".join(lines))


def _example(where: str, row: Mapping[str, Any], columns: Columns) -> Example | Unusable:
    if columns.prompt == "messages":
        row, columns = _first_exchange(row), Columns("{user}", "assistant", columns.label)
    first, *others = columns.of_prompt
    empty, odd = [], []
    for name in filter(None, [first, columns.response, columns.label]):
        value, faults = row.get(name), odd if name == columns.label else empty
        if value is None:
            faults.append(f"{name!r} is missing; expected text")
        elif not isinstance(value, str):
            odd.append(f"{name!r} is {type(value).__name__} {value!r:.40}; expected text")
        elif not value.strip():
            faults.append(f"{name!r} is empty")
    for name in others:
        if not isinstance(row.get(name) or "", str):
            odd.append(f"{name!r} is {type(row[name]).__name__}; expected text")
    if empty or odd:
        return Unusable(where, " and ".join([*empty, *odd]), empty=not odd)
    filled = re.sub(r"\{([^{}]+)\}", lambda match: row.get(match[1]) or "", columns.prompt)
    label = row[columns.label] if columns.label else ""
    return Example(filled.strip(), row[columns.response].strip(), label)


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

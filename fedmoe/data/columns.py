"""Rows of instruction data -> examples: which columns hold the prompt, the response, the label."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal
from unicodedata import category

from fedmoe.data import conversations
from fedmoe.data.conversations import RowFault
from fedmoe.data.examples import Example
from fedmoe.data.options import read_options
from fedmoe.errors import DataError
from fedmoe.system.json_text import unwritable

MAX_FAULTS = 10
MOST_LABEL = 200
"""Characters."""

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


Kind = Literal["pair", "alpaca", "messages", "conversations"]


@dataclass(frozen=True)
class Columns:
    """Where to find the parts of an example in a row."""

    prompt: str
    """Template with columns in braces, the first of which may not be empty."""
    response: str
    label: str
    kind: Kind = "pair"
    """The format of a row; of `messages` and `conversations` it is the column, too."""
    options: str | tuple[str, ...] = ""
    """Column of the options of a multiple-choice row, one of which is the response; or the options
    of all rows."""

    @property
    def of_prompt(self) -> list[str]:
        return re.findall(r"\{([^{}]+)\}", self.prompt)

    def extra(self, row: Mapping[str, Any], right: Any) -> tuple[str, int]:
        """Return a row's options, of which `right` is one; see `read_options`."""
        if isinstance(self.options, str):
            return read_options(row.get(self.options), self.options, right)
        return read_options([*self.options], "data.options", right)

    def __str__(self) -> str:
        if self.kind == "messages":
            return "conversations, in the column 'messages'"
        if self.kind == "conversations":
            return "conversations as of ShareGPT, in the column 'conversations'"
        text = f"prompts {self.prompt!r}, responses {self.response!r}"
        return f"{text}, after 'system' and 'history'" if self.kind == "alpaca" else text


def find_columns(
    source: str,
    present: Sequence[str],
    *,
    prompt: str,
    response: str,
    label: str,
    options: str | tuple[str, ...] = "",
) -> Columns:
    """Return the columns that were named, and for those left empty the usual ones.

    Raises:
        DataError: a named column is missing, or no usual name is there; lists what is.
    """
    named = prompt or response
    prompt = prompt if not prompt or "{" in prompt else f"{{{prompt}}}"
    of_options = options if isinstance(options, str) else ""
    if not prompt and not response and (chat := _chat_column(present)):
        _check_columns(source, [label, of_options], present)
        return Columns("", "", label, chat, options)
    usual = (p for p in _PROMPTS if set(Columns(p, "", "").of_prompt) <= set(present))
    prompt = prompt or next(usual, "")
    response = response or next((name for name in _RESPONSES if name in present), "")
    earlier = not named and {"system", "history"} & {*present}
    columns = Columns(prompt, response, label, "alpaca" if earlier else "pair", options)

    faults = [
        f"{what}: no column found" for what in ("prompt", "response") if not getattr(columns, what)
    ]
    faults += [
        _no_column(name, present)
        for name in [*columns.of_prompt, response, label, of_options]
        if name and name not in present
    ]
    if faults:
        raise DataError(
            f"{source}: {'; '.join(faults)}; the columns are {', '.join(map(repr, present))};"
            " set prompt and response to the ones to use"
        )
    return columns


def _chat_column(present: Sequence[str]) -> Literal["messages", "conversations"] | None:
    if "messages" in present:
        return "messages"
    return "conversations" if "conversations" in present else None


def _check_columns(source: str, names: Sequence[str], present: Sequence[str]) -> None:
    for name in names:
        if name and name not in present:
            listed = ", ".join(map(repr, present))
            raise DataError(f"{source}: {_no_column(name, present)}; the columns are {listed}")


def _no_column(name: str, present: Sequence[str]) -> str:
    near = get_close_matches(name, present, n=1)
    return f"no column {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def to_examples(
    rows: Iterable[Row | Unusable], columns: Columns, tools: Sequence[Any] = ()
) -> list[Example | Unusable]:
    """Return an example for each row, or why there is none.

    Args:
        tools: functions that the assistant may call in rows without a column `tools`.
    """
    return [
        row if isinstance(row, Unusable) else sound(row[0], _example(*row, columns, tools))
        for row in rows
    ]


def columns_of(rows: Iterable[Row | Unusable]) -> list[str]:
    """Return the names of the columns that any row has."""
    found = [row[1] for row in rows if not isinstance(row, Unusable)]
    return list(dict.fromkeys(name for row in found for name in row))


def too_many(source: str, what: str, faults: Sequence[object]) -> DataError:
    """Return an error that lists the first ten faults and counts the rest."""
    more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    lines = [f"{source}: {len(faults)} {what}", *map(str, faults[:MAX_FAULTS]), *more]
    return DataError("\n  ".join(lines))


def _example(
    where: str, row: Mapping[str, Any], columns: Columns, tools: Sequence[Any]
) -> Example | Unusable:
    extra = ""
    try:
        label = _label(columns.label, row.get(columns.label)) if columns.label else ""
        if columns.options and columns.kind == "pair":
            name = columns.response
            extra, right = columns.extra(row, row.get(name))
            row = {**row, name: json.loads(extra)["options"][right]}
        found = _conversation(row, columns)
        own = _tools(row, isinstance(found, tuple)) or tools
        if isinstance(found, tuple):
            if not own:
                return Example(*found, label, extra=extra)
            found = conversations.of_lists(*found)
        conversation = conversations.checked(found)
        if columns.options and not extra:
            extra, _ = columns.extra(row, conversations.exchange(conversation)[1])
    except RowFault as fault:
        return Unusable(where, str(fault), fault.empty)
    packed = conversations.packed(conversation, own)
    pair = conversations.exchange(conversation)
    return Example(*pair, label, extra=extra, conversation=packed)


def sound(where: str, found: Example | Unusable) -> Example | Unusable:
    """Return an example whose text can be written down, or that it cannot."""
    if isinstance(found, Unusable):
        return found
    for text in (found.prompt, found.response, found.label, found.conversation):
        if odd := unwritable(text):
            return Unusable(where, odd)
    return found


def _label(column: str, value: Any) -> str:
    """Return a label, which is a short text or an integer."""
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"{_odd_text(column, value)}{' or an integer' * (value is not None)}")
    if any(category(character) == "Cc" for character in value):
        raise RowFault(f"{column!r} is {value!r:.40}; a label has no control characters")
    if len(value) > MOST_LABEL:
        said = f"{column!r} has {len(value):,} characters; a label has at most {MOST_LABEL}"
        raise RowFault(f"{said}: is it the column to partition by?")
    return value


def _tools(row: Mapping[str, Any], pair: bool) -> list[Any]:
    """Return the functions in a row's own columns; beside a pair other values are of no concern."""
    try:
        return conversations.tools_of(row.get("tools") or row.get("functions"))
    except RowFault:
        if not pair:
            raise
    return []


def _conversation(
    row: Mapping[str, Any], columns: Columns
) -> list[conversations.Message] | tuple[str, str]:
    """Return the messages of a row, or its prompt and response where it has but these."""
    if columns.kind == "messages":
        return conversations.of_messages(row)
    if columns.kind == "conversations":
        return conversations.of_sharegpt(row)
    prompt = row.get(columns.of_prompt[0])
    response = row.get(columns.response)
    if any(isinstance(v, list) and any(isinstance(m, dict) for m in v) for v in (prompt, response)):
        return conversations.of_lists(prompt, response)
    pair = _pair(row, columns)
    if columns.kind == "alpaca" and (row.get("system") or row.get("history")):
        return conversations.of_alpaca(row, *pair)
    return pair


def _pair(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    first, *others = columns.of_prompt
    empty, odd = [], []
    for name in (first, columns.response):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            (odd if value is not None and not isinstance(value, str) else empty).append(
                _odd_text(name, value)
            )
    for name in others:
        if not isinstance(row.get(name) or "", str):
            odd.append(f"{name!r} is {type(row[name]).__name__}; expected text")
    if empty or odd:
        raise RowFault(" and ".join([*empty, *odd]), empty=not odd)
    return _filled(columns.prompt, row), row[columns.response]


def _odd_text(name: str, value: Any) -> str:
    if value is None:
        return f"{name!r} is missing; expected text"
    if isinstance(value, str):
        return f"{name!r} is empty"
    return f"{name!r} is {type(value).__name__} {value!r:.40}; expected text"


def _filled(template: str, row: Mapping[str, Any]) -> str:
    """Fill a template; white space of its own is cut at both ends, never that of a row."""
    parts = re.split(r"\{([^{}]+)\}", template)  # its own text and names of columns, in turn
    parts[1::2] = [row.get(name) or "" for name in parts[1::2]]
    for ends in (range(len(parts)), range(len(parts) - 1, -1, -1)):
        for n in ends:
            if n % 2 == 0:
                parts[n] = parts[n].lstrip() if ends.step > 0 else parts[n].rstrip()
            if parts[n]:
                break
    return "".join(parts)

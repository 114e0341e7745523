"""Function calls in the text of an answer, read by the form that the chat template gives them.

A template is shown one call, and what stands around its JSON is the form. One that writes calls
in another way than as JSON objects of a name and arguments is not read: they stay text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe.data.conversations import Message, RowFault, loads
from fedmoe.data.templates import PROBE, Template

OneCall = dict[str, str]
"""A name, and arguments as JSON text."""
NAME, ARGUMENTS = "probe_name", {"probe_argument": "probe_value"}
KEYS = ("arguments", "parameters")


@dataclass(frozen=True)
class Calls:
    """The text around the JSON of calls."""

    before: str
    behind: str
    between: str | None
    """None where an answer has but one call."""
    key: str
    """By which a call names its arguments."""

    def may_begin(self, text: str) -> bool:
        """Return whether an answer that begins like this may be calls, and no text."""
        start, text = f"{self.before}{{", text.lstrip()
        return text.startswith(start) or start.startswith(text)

    def read(self, text: str) -> list[OneCall]:
        """Return the calls that make up a text; none where there is anything else.

        >>> form = Calls("<call>", "</call>", None, "arguments")
        >>> form.read('<call>{"name": "f", "arguments": {}}</call>')
        [{'name': 'f', 'arguments': '{}'}]
        """
        found, place, text = list[OneCall](), 0, text.strip()
        border: str | None = self.before
        while border is not None and text.startswith(border, place):
            value, place = _json_at(text, place + len(border))
            if (call := _call(value, self.key)) is None:
                return []
            found.append(call)
            if text[place:] == self.behind:
                return found
            border = self.between
        return []


def _json_at(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at a place, and where it ends; None where there is none."""
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
        return loads(text[start:end]), end
    except (ValueError, RecursionError):
        return None, start


def _call(value: Any, key: str) -> OneCall | None:
    if not isinstance(value, dict) or {*value} != {"name", key}:
        return None
    if not isinstance(value["name"], str) or not isinstance(value[key], dict):
        return None
    return {"name": value["name"], "arguments": json.dumps(value[key], ensure_ascii=False)}


def calls_of(template: Template, decode: Callable[[Sequence[int]], str]) -> Calls | None:
    """Return the form in which a template words calls; None where it is no JSON, or has none.

    Args:
        decode: returns the text of ids as answers have it, without special tokens.
    """
    one, two = (_worded(template, decode, count) for count in (1, 2))
    before, found, behind = one.partition(_first_json(one)) if one else ("", "", "")
    value = _json_at(found, 0)[0]
    key = next((k for k in KEYS if isinstance(value, dict) and value.get(k) == ARGUMENTS), None)
    if key is None or _call(value, key) is None:
        return None
    before, behind = before.lstrip(), behind.rstrip()
    parts = two.strip().removeprefix(before).removesuffix(behind).split(found)
    between = parts[1] if len(parts) == 3 and not (parts[0] or parts[2]) else None
    return Calls(before, behind, between, key)


def _worded(template: Template, decode: Callable[[Sequence[int]], str], count: int) -> str:
    """Return an answer of so many equal calls; empty where the template has none such."""
    call = {"type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
    calls = [call | {"id": f"probe_{n:03}"} for n in range(count)]
    answer: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        before, whole = template.before(PROBE, 1, None), template.render([*PROBE, answer], None)
        if not whole.startswith(before):
            return ""
        return decode(template.after(template.ids(before), before, whole.removeprefix(before)))
    except RowFault:
        return ""


def _first_json(text: str) -> str:
    """Return the text of the first JSON object in a text; the whole text where there is none."""
    start = text.find("{")
    end = _json_at(text, start)[1] if start >= 0 else start
    return text[start:end] if end > start else text

"""Function calls in the text of an answer, read by the form that the chat template gives them.

A template is shown one call, and what stands around its JSON is the form. One that writes calls
in another way than as JSON objects of a name and arguments is not read: they stay text.
"""

from __future__ import annotations

import json
import re
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
    """What stands before and behind the JSON of each call."""

    before: str
    behind: str
    key: str
    """By which a call names its arguments."""

    def may_begin(self, text: str) -> bool:
        """Return whether an answer that begins like this may be calls, and no text."""
        start = f"{self.before}{{"
        text = text.lstrip()
        return text.startswith(start) or start.startswith(text)

    def read(self, text: str) -> Sequence[OneCall]:
        """Return the calls that make up a text; none where there is anything else.

        >>> form = Calls("<call>", "</call>", "arguments")
        >>> form.read('<call>{"name": "f", "arguments": {}}</call>')
        [{'name': 'f', 'arguments': '{}'}]
        """
        found, decoder, place = [], json.JSONDecoder(), 0
        text = text.strip()
        while place < len(text):
            if not text.startswith(self.before, place):
                return []
            try:
                start = place + len(self.before)
                value, end = decoder.raw_decode(text, start)
                loads(text[start:end])
            except (ValueError, RecursionError):
                return []
            call = _call(value, self.key)
            if call is None or not text.startswith(self.behind, end):
                return []
            found.append(call)
            place = end + len(self.behind)
            place += len(text[place:]) - len(text[place:].lstrip())
        return found


def _call(value: Any, key: str) -> OneCall | None:
    if not isinstance(value, dict) or {*value} != {"name", key}:
        return None
    if not isinstance(value["name"], str) or not isinstance(value[key], dict):
        return None
    return {"name": value["name"], "arguments": json.dumps(value[key], ensure_ascii=False)}


def calls_of(template: Template, decode: Callable[[Sequence[int]], str]) -> Calls | None:
    """Return the form in which a template words calls; None where it is no JSON, or has none.

    Args:
        template: the run's.
        decode: returns the text of ids as answers have it, without special tokens.
    """
    function = {"name": NAME, "arguments": ARGUMENTS}
    call: Message = {"role": "assistant", "content": ""}
    call["tool_calls"] = [{"type": "function", "id": "probe_0001", "function": function}]
    try:
        before = template.before(PROBE, 1, None)
        whole = template.render([*PROBE, call], None)
        if not whole.startswith(before):
            return None
        ids = template.ids(before)
        text = decode(template.after(ids, before, whole.removeprefix(before)))
    except RowFault:
        return None
    start = text.find("{")
    if start < 0 or not re.search(rf"\b{NAME}\b", text):
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    key = next((k for k in KEYS if isinstance(value, dict) and value.get(k) == ARGUMENTS), None)
    if key is None or _call(value, key) is None:
        return None
    return Calls(text[:start].lstrip(), text[end:].rstrip(), key)

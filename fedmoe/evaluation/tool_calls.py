"""The metric of function calls: names and arguments compared as values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fedmoe.data.conversations import unpacked
from fedmoe.data.examples import Example
from fedmoe.evaluation.metric import Metric
from fedmoe.section import section

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
OPENED = re.compile(r"^\s*(\[TOOL_CALLS\]|<\|python_tag\|>|```(?:json)?)")
"""What models write before calls that are plain JSON."""


@section
class ToolCalls(Metric):
    """Score 1 for an answer that makes the response's calls, and no other, else 0.

    Calls are read from `<tool_call>{json}</tool_call>`, from one JSON object or a list of them, or
    from the same after `[TOOL_CALLS]`, `<|python_tag|>` or in a block marked by three backticks.
    Names and arguments are compared as values, whatever the order of keys. Where the response makes
    no call, an answer without one scores 1.
    """

    name: Literal["tool_calls"] = "tool_calls"
    order: Literal["any", "same"] = "any"
    """Whether several calls must come in the response's order."""

    def __call__(self, example: Example, answer: str) -> float:
        wanted, found = self._canonical(right_calls(example)), calls_in(answer)
        return float(found is not None and self._canonical(found) == wanted)

    def lacks(self, examples: Sequence[Example]) -> str:
        """Return that no response makes a call, if so."""
        if any(map(right_calls, examples)):
            return ""
        return "'tool_calls' finds no call in any response; see its forms, or use another metric"

    def remark(self, examples: Sequence[Example]) -> str:
        """Return how many responses make no call, so that calling nothing scores 1 there."""
        idle = sum(not right_calls(example) for example in examples)
        if not idle:
            return ""
        return f"tool_calls: {idle} of {len(examples)} responses call nothing, and no call scores 1"

    def _canonical(self, calls: Sequence[Any]) -> list[str]:
        texts = [json.dumps(_value(call), sort_keys=True) for call in calls]
        return sorted(texts) if self.order == "any" else texts


def right_calls(example: Example) -> list[dict[str, Any]]:
    """Return the calls of the response: the last message's, else those in its text."""
    if example.conversation:
        last = unpacked(example.conversation)[0][-1]
        if calls := last.get("tool_calls"):
            return [call for one in calls for call in _call(one)]
    return calls_in(example.response) or []


def calls_in(answer: str) -> list[dict[str, Any]] | None:
    """Return the calls in an answer, empty if it makes none; None if they cannot be read.

    Example:
        >>> calls_in('<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>')
        [{'name': 'light', 'arguments': {'on': True}}]
        >>> calls_in("It is on."), calls_in('<tool_call>{"name": "light", </tool_call>')
        ([], None)
    """
    try:
        if tagged := TAGGED.findall(answer):
            calls = [call for text in tagged for call in _call(json.loads(text))]
            return calls or None
        plain = OPENED.sub("", answer).strip().removesuffix("```").strip()
        return [*_call(json.loads(plain))] if plain[:1] in ("{", "[") and plain else []
    except (ValueError, RecursionError):
        return None if TAGGED.search(answer) or OPENED.search(answer) else []


def _call(found: Any) -> Iterator[dict[str, Any]]:
    """Yield the calls in a value of JSON: one, a list, or a message with `tool_calls`."""
    if isinstance(found, list):
        for each in found:
            yield from _call(each)
        return
    if isinstance(found, dict) and "tool_calls" in found:
        yield from _call(found["tool_calls"])
        return
    named = found.get("function", found) if isinstance(found, dict) else None
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise ValueError("no call")
    arguments = named.get("arguments", named.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    yield {"name": named["name"], "arguments": arguments}


def _value(found: Any) -> Any:
    """Return a value in the one form that equal values have: 1.0 is 1, and true is not."""
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, dict):
        return {key: _value(value) for key, value in found.items()}
    return [_value(value) for value in found] if isinstance(found, list) else found

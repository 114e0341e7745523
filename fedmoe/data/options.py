"""Multiple-choice rows: the options in a column, and which of them is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedmoe.data.conversations import RowFault


def read_options(value: Any, column: str, right: Any) -> tuple[str, int]:
    """Return the options as JSON for `Example.extra`, and the number of the right one.

    Args:
        value: a list of texts, the same as JSON, or a mapping with `text` and `label` lists (ARC).
        column: where they were found.
        right: the right option's text, its label, a letter from A, or its number from 0.

    Raises:
        RowFault: no options, or `right` is none of them.

    Example:
        >>> read_options(["red", "blue"], "choices", "B")
        ('{"options": ["red", "blue"], "right": 1}', 1)
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowFault(f"{column!r} is no list of options: {value!r:.40}") from error
    letters: Sequence[Any] = [chr(ord("A") + n) for n in range(26)]
    if isinstance(value, dict):
        value, letters = value.get("text"), value.get("label") or letters
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
        raise RowFault(f"{column!r} is {value!r:.40}; expected a list of two texts or more")
    number = _number(value, letters, right)
    if number is None:
        raise RowFault(f"the response, {right!r:.40}, is none of the options in {column!r}")
    extra = json.dumps({"options": value, "right": number}, ensure_ascii=False)
    return extra, number


def _number(options: Sequence[str], letters: Sequence[Any], right: Any) -> int | None:
    if type(right) is int:
        return right if 0 <= right < len(options) else None
    for known in (options, letters):
        plain = [str(each).strip() for each in known]
        if str(right).strip() in plain[: len(options)]:
            return plain.index(str(right).strip())
    return None

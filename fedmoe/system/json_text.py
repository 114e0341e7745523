"""Values as strict JSON, in which a number that is not finite becomes null, and text in files."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every parser reads.

    NaN and infinities become null: a diverged loss must not end the run that reports it.
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def unwritable(text: str) -> str:
    """Return why no file can hold a text; empty where one can.

    Half of a pair of surrogates comes from JSON such as `"\\ud800"`, and from words on the command
    line that are not UTF-8.

    >>> unwritable("plain")
    ''
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text!r:.40} has half a character, {text[error.start]!r}, which UTF-8 cannot write"
    return ""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

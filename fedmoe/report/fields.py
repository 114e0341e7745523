"""The numbers that clients report, as the text that tables, logs and pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmoe.messages.records import CLIENT_FIELDS, Field
from fedmoe.report.ledger import Record
from fedmoe.report.units import bytes_text, count_text, number_text, seconds_text

LIVE = tuple(field for field in CLIENT_FIELDS if field.live)
IN_REPORT = tuple(field for field in CLIENT_FIELDS if field.over_rounds)


def field_text(field: Field, value: float | None) -> str:
    """Return a value of a field in its unit; a dash if nothing was measured."""
    if field.unit == "seconds":
        return seconds_text(value)
    if field.unit == "bytes":
        return bytes_text(value)
    return count_text(value) if field.type is int else number_text(value)


def live_headings() -> list[str]:
    """Return the columns that a table of a round under way has for each client.

    >>> live_headings()
    ['loss before', 'loss after', 'tokens/s', 'time']
    """
    return [f.label if f.live == "value" else f"{f.label}/s" for f in LIVE]


def live_cells(values: Mapping[str, Any]) -> list[str]:
    """Return the cells under `live_headings`, from a client's numbers by name.

    >>> live_cells({"loss_before": 2.5, "loss_after": None, "tokens": 4000, "seconds": 2.0})
    ['2.500', '–', '2,000', '2.0 s']
    """
    return [field_text(field, _live_value(field, values)) for field in LIVE]


def live_line(values: Mapping[str, Any]) -> str:
    """Return the same in one line of a log."""
    return ", ".join(map(" ".join, zip(live_headings(), live_cells(values), strict=True)))


def total_cells(
    lines: Sequence[Record], known: Mapping[str, float | None], hidden: str = ""
) -> list[str]:
    """Return the cells of the fields `IN_REPORT` for one client.

    Args:
        lines: the client's lines in the ledger, by round; a field may be missing in old ones.
        known: values by name that are not taken from `lines`.
        hidden: stands for what nobody is shown, if anything is hidden.
    """
    cells = [field_text(f, known.get(f.name, _total(f, lines))) for f in IN_REPORT]
    return [
        hidden if hidden and f.name not in known else c
        for f, c in zip(IN_REPORT, cells, strict=True)
    ]


def largest(lines: Sequence[Record], name: str) -> float | None:
    """Return the largest value of a field; None if there is none."""
    return max((v for line in lines if (v := line.get(name)) is not None), default=None)


def _live_value(field: Field, values: Mapping[str, Any]) -> float | None:
    value, seconds = values.get(field.name), values.get("seconds")
    if field.live == "value" or value is None:
        return value
    return value / seconds if seconds else None


def _total(field: Field, lines: Sequence[Record]) -> float | None:
    if field.over_rounds == "sum":
        return sum(line.get(field.name) or 0 for line in lines)
    if field.over_rounds == "largest":
        return largest(lines, field.name)
    return lines[0 if field.over_rounds == "first" else -1].get(field.name) if lines else None

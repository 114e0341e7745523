"""Rows that are in memory already: a notebook's own lists, with no file between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, Literal, Self

from pydantic import Field

from fedmoe.data.columns import Row, Unusable, columns_of, whole
from fedmoe.data.examples import Example, Splits, split_by_group
from fedmoe.data.table import Table
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.section import section

Rows = Sequence[Any]
"""Examples, `(prompt, response)` or `(prompt, response, label)`, or mappings of columns."""


@section
class Memory(Table):
    """Rows given in Python; a prompt may come more than once, such as at two clients.

    The splits are cut from `rows` by the shares, unless `validation` or `test` are given.

    Example:
        >>> Memory(rows=[("on", "light.on"), ("off", "light.off")]).load(seed=0).train[0].prompt
        'on'
    """

    name: Literal["memory"] = "memory"
    rows: Rows
    """Examples, pairs of prompt and response (and a label as the third), or mappings of columns."""
    validation: Rows = Field(default=())
    """The same for validation; cut from `rows` when empty."""
    test: Rows = Field(default=())
    """The same for testing; cut from `rows` when empty."""

    @classmethod
    def of_clients(cls, clients: Mapping[str, Rows], **settings: Any) -> Self:
        """Return rows that are labelled by their client; `partition: {name: given}` keeps them so.

        Example:
            >>> data = Memory.of_clients({"b": [("hi", "ho")], "a": [("he", "ha")]}, test_share=0)
            >>> [(row.label, row.prompt) for row in data.rows]
            [('b', 'hi'), ('a', 'he')]
        """
        plain, rows = cls(rows=(), **settings), []
        for name, own in clients.items():
            found = plain.read(own, source := f"rows of client {name!r}")
            plain.usable(source, found)
            rows += [replace(r, label=name) if isinstance(r, Example) else r for r in found]
        return cls(rows=tuple(rows), **settings)

    def load(self, seed: int) -> Splits:
        """Return the splits; the shares of what is given apart are not cut from `rows`.

        Raises:
            DataError: no rows, or rows that cannot be used, the first ten of them by place.
        """
        given, dropped = {}, RowCounts()
        for name in ("rows", "validation", "test"):
            given[name], others = self.usable(name, self.read(getattr(self, name), name))
            dropped += others
        if not given["rows"]:
            raise DataError("data.rows has no rows; expected at least one")
        cut = split_by_group(
            given["rows"],
            seed,
            validation_share=0.0 if given["validation"] else self.validation_share,
            test_share=0.0 if given["test"] else self.test_share,
            repeats=True,
        )
        validation, test = given["validation"] or cut.validation, given["test"] or cut.test
        return Splits(cut.train, validation, test, dropped)

    def read(self, rows: Rows, source: str) -> list[Example | Unusable]:
        """Return an example for each row of any kind, or why there is none."""
        places = [(f"{source}[{n}]", row) for n, row in enumerate(rows)]
        if not any(isinstance(row, Mapping) for row in rows):
            return [whole(place[0], _from_pair(*place)) for place in places]
        found = [_of_columns(*place) for place in places]
        return self.examples(source, columns_of(found), found)

    def in_memory(self) -> str:
        """Return how many rows there are, and a digest, by which a resumed run knows them."""
        sets = [self.read(rows, "rows") for rows in (self.rows, self.validation, self.test)]
        text = json.dumps([[astuple(example) for example in found] for found in sets])
        return f"{len(self.rows)} rows, sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _of_columns(where: str, row: Any) -> Row | Unusable:
    if isinstance(row, Mapping):
        return where, row
    return Unusable(where, f"{row!r:.60}; expected a mapping of columns, as other rows are")


def _from_pair(where: str, row: Any) -> Example | Unusable:
    if isinstance(row, Unusable):
        return row
    parts = astuple(row)[:2] if isinstance(row, Example) else row
    right = isinstance(parts, Sequence) and not isinstance(parts, str) and len(parts) in (2, 3)
    if right and all(isinstance(part, str) for part in parts) and all(p.strip() for p in parts[:2]):
        return row if isinstance(row, Example) else Example(*row, *_label(row))
    empty = right and all(part is None or isinstance(part, str) for part in parts[:2])
    empty = empty and all(isinstance(part, str) for part in parts[2:])
    return Unusable(where, f"{row!r:.60}; expected (prompt, response)", empty)


def _label(row: Sequence[str]) -> tuple[str, ...]:
    return ("",) if len(row) == 2 else ()

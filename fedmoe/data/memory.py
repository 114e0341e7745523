"""Rows that are in memory already: a notebook's own lists, with no file between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from fedmoe.data.columns import Row, too_many
from fedmoe.data.examples import Example, Splits, split_by_group
from fedmoe.data.table import Table
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
    repeats: ClassVar[bool] = True

    @classmethod
    def of_clients(cls, clients: Mapping[str, Rows], **settings: Any) -> Self:
        """Return rows that are labelled by their client; `partition: {name: given}` keeps them so.

        Example:
            >>> data = Memory.of_clients({"b": [("hi", "ho")], "a": [("he", "ha")]}, test_share=0)
            >>> [(row.label, row.prompt) for row in data.rows]
            [('b', 'hi'), ('a', 'he')]
        """
        plain = cls(rows=(), **settings)
        rows = [
            replace(row, label=name)
            for name, own in clients.items()
            for row in plain.read(own, f"rows of client {name!r}")
        ]
        return cls(rows=tuple(rows), **settings)

    def load(self, seed: int) -> Splits:
        """Return the splits; the shares of what is given apart are not cut from `rows`.

        Raises:
            DataError: rows that cannot be used, the first ten of them by place.
        """
        validation, test = self.read(self.validation, "validation"), self.read(self.test, "test")
        cut = split_by_group(
            self.read(self.rows, "rows"),
            seed,
            validation_share=0.0 if validation else self.validation_share,
            test_share=0.0 if test else self.test_share,
            repeats=True,
        )
        return Splits(cut.train, validation or cut.validation, test or cut.test)

    def read(self, rows: Rows, source: str) -> tuple[Example, ...]:
        """Return the examples of rows of any kind; see `load` for the errors."""
        if rows and all(isinstance(row, Mapping) for row in rows):
            places: list[Row] = [(f"{source}[{n}]", row) for n, row in enumerate(rows)]
            present = list(dict.fromkeys(name for row in rows for name in row))
            return self.examples(source, present, places)
        examples, faults = [], []
        for number, row in enumerate(rows):
            parts = astuple(row)[:2] if isinstance(row, Example) else row
            if not _is_text(parts):
                faults.append(f"{source}[{number}]: {row!r:.60}; expected (prompt, response)")
            else:
                examples.append(row if isinstance(row, Example) else Example(*row, *_label(row)))
        if faults:
            raise too_many(source, "row(s) cannot be used", faults)
        return tuple(examples)

    def in_memory(self) -> str:
        """Return how many rows there are, and a digest, by which a resumed run knows them."""
        sets = [self.read(rows, "rows") for rows in (self.rows, self.validation, self.test)]
        text = json.dumps([[astuple(example) for example in found] for found in sets])
        return f"{len(self.rows)} rows, sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_text(parts: Any) -> bool:
    if not isinstance(parts, Sequence) or isinstance(parts, str) or len(parts) not in (2, 3):
        return False
    return all(isinstance(part, str) for part in parts) and all(p.strip() for p in parts[:2])


def _label(row: Sequence[str]) -> tuple[str, ...]:
    return ("",) if len(row) == 2 else ()

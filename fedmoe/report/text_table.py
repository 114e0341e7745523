"""Tables as text in rows and columns; HTML, Markdown and terminals show the same cells."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from fedmoe.report.units import DASH

T = TypeVar("T")
GAP = 2
"""Spaces between two columns on a terminal."""
FOLDED = 24
"""Characters of a column of words, below which it is not folded."""


class Strong(str):
    """A cell that is set in bold."""

    __slots__ = ()


@dataclass(frozen=True)
class TextTable:
    """A titled table; its first `num_words` columns hold words, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    num_words: int = 1
    note: str = ""

    @staticmethod
    def of(
        title: str,
        items: Iterable[T],
        *columns: tuple[str, Callable[[T], str]],
        num_words: int = 1,
        note: str = "",
    ) -> TextTable:
        """Return a table with a row per item; a column is a heading and the text of one item.

        >>> TextTable.of("Squares", [2, 3], ("n", str), ("squared", lambda n: str(n * n))).rows
        [['2', '4'], ['3', '9']]
        """
        rows = [[text(item) for _, text in columns] for item in items]
        return TextTable(title, [name for name, _ in columns], rows, num_words, note)

    def without(self, *names: str) -> TextTable:
        """Return the table without the named columns."""
        return self._keep([i for i, name in enumerate(self.columns) if name not in names])

    def without_empty(self, *names: str) -> TextTable:
        """Return the table without those of the named columns that hold dashes alone.

        Without names, every column but the first may go.
        """
        empty = [all(row[i] == DASH for row in self.rows) for i in range(len(self.columns))]
        may_go = [name in names if names else i > 0 for i, name in enumerate(self.columns)]
        return self._keep([i for i in range(len(empty)) if not (empty[i] and may_go[i])])

    def shortened(self, most: int) -> TextTable:
        """Return the table with its first rows alone, and a note that says so.

        >>> table = TextTable("Squares", ["n"], [["2"], ["3"], ["4"]], note="Small ones.")
        >>> table.shortened(2).rows, table.shortened(2).note
        ([['2'], ['3']], 'Small ones. The first 2 of 3 rows; the ledger has all.')
        """
        if len(self.rows) <= most:
            return self
        note = f"{self.note} The first {most:,} of {len(self.rows):,} rows; the ledger has all."
        return replace(self, rows=self.rows[:most], note=note.strip())

    def parts(self, width: int) -> list[TextTable]:
        """Return the table as tables that a terminal of `width` columns can show, whole.

        Where there is no room headings are broken between words, and words may be folded; columns
        that still have none follow below, beside the first one again. No number is ever cut.

        >>> table = TextTable("", ["run", "loss before", "loss after"], [["a", "5.512", "0.764"]])
        >>> [part.columns for part in table.parts(20)]
        [['run', 'loss\\nbefore', 'loss\\nafter']]
        >>> [part.columns for part in table.parts(12)]
        [['run', 'loss\\nbefore'], ['run', 'loss\\nafter']]
        """
        cells = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        whole = [_length(name, *own) for name, own in zip(self.columns, cells, strict=True)]
        if sum(whole) + GAP * (len(whole) - 1) <= width:
            return [self]
        needed = self.least_widths()
        names = [
            "\n".join(textwrap.wrap(name, n, break_long_words=False))
            for name, n in zip(self.columns, needed, strict=True)
        ]
        groups, used = [[0]], needed[0]
        for i in range(1, len(cells)):
            if used + GAP + needed[i] > width and len(groups[-1]) > 1:
                groups.append([0])
                used = needed[0]
            groups[-1].append(i)
            used += GAP + needed[i]
        broken = replace(self, columns=names)
        return [broken._keep(group) for group in groups]

    def least_widths(self) -> list[int]:
        """Return the characters that each column needs: its longest number, or its words folded."""
        found = []
        for i, name in enumerate(self.columns):
            most = _length(*(row[i] for row in self.rows))
            word = max(map(len, name.split()), default=0)
            found.append(max(word, min(most, FOLDED) if i < self.num_words else most))
        return found

    def markdown(self) -> list[str]:
        """Return the lines of the table in Markdown."""
        rules = [":--" if i < self.num_words else "--:" for i in range(len(self.columns))]
        rows = [self.columns, rules, *([_marked(cell) for cell in row] for row in self.rows)]
        return ["| " + " | ".join(row) + " |" for row in rows]

    def _keep(self, indices: list[int]) -> TextTable:
        columns, *rows = ([row[i] for i in indices] for row in (self.columns, *self.rows))
        words = sum(i < self.num_words for i in indices)
        return replace(self, columns=columns, rows=rows, num_words=words)


def pairs_table(
    title: str, columns: tuple[str, str], pairs: Iterable[tuple[str, str]]
) -> TextTable:
    """Return a table of names and values, such as settings."""
    return TextTable(title, [*columns], [[*pair] for pair in pairs], num_words=2)


def markdown_sections(tables: Iterable[TextTable], *, notes: bool = True) -> list[str]:
    """Return the lines of titled tables in Markdown; those without rows are left out."""
    lines = []
    for table in tables:
        if table.rows:
            lines += [f"## {plain(table.title)}", "", *table.markdown(), ""]
            lines += [plain(table.note), ""] if notes and table.note else []
    return lines


def _length(*texts: str) -> int:
    """Return the length of the longest line."""
    return max((len(line) for text in texts for line in text.split("\n")), default=0)


def _marked(cell: str) -> str:
    """Return a cell as Markdown has it."""
    return f"**{plain(cell)}**" if isinstance(cell, Strong) else plain(cell)


def plain(text: str) -> str:
    """Return text that can neither end its cell or line nor become HTML."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")

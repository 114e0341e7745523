"""Rows with columns as a dataset: what files, the Hub and rows in memory have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedmoe.data.columns import Columns, Row, Unusable, find_columns, to_examples, too_many
from fedmoe.data.conversations import RowFault, tools_of
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Share, Splits, split_by_group
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.section import section
from fedmoe.system.files import expanded

TOOLS = ".tools.json"
"""The end of the name of a file that describes functions, beside the rows that call them."""


def tools_file(rows: Path) -> Path:
    """Return where a file's tools are, if it has any.

    Example:
        >>> tools_file(Path("berlin.jsonl")).name
        'berlin.tools.json'
    """
    return rows.with_name(rows.stem + TOOLS)


@section
class Table(Dataset):
    """Rows whose columns hold a prompt and a response, or a conversation, and perhaps a label."""

    prompt: str = ""
    """Column of the prompt, or a template: "{instruction} {input}". Empty: the usual names."""
    response: str = ""
    """Column of the response. Empty: the usual names."""
    label: str = ""
    """Column to partition by, such as category. Empty: all rows are alike."""
    tools: str = ""
    """A JSON file of functions that the assistant may call, as chat templates take them, for rows
    without a column `tools`. Empty: NAME.tools.json beside NAME.jsonl, if there is one."""
    unusable: Literal["refuse", "drop"] = "refuse"
    """The treatment of rows that cannot be read, have no prompt or no response, or no text where
    text belongs, or messages in an order that cannot be: `refuse` lists the first ten; `drop`
    leaves them out and counts them."""
    options: str | tuple[str, ...] = ""
    """Column of the options of multiple-choice rows: a list of texts, one of which is the response,
    or which the response names by its letter or number; see the metric `choice`. A list stands for
    the options of all rows, as in `[neutral, positive, negative]`."""
    test_share: Share = 0.15
    """Share of the prompts that are held out for testing."""
    validation_share: Share = 0.1
    """Share of the prompts that are held out for validation."""
    repeats: ClassVar[bool] = True

    def table(self) -> tuple[str, Sequence[str], Iterable[Row | Unusable]]:
        """Return the source in words, the names of its columns, and its rows.

        Raises:
            DataError: the rows cannot be read.
        """
        raise NotImplementedError

    def file(self) -> Path | None:
        """Return the file that the rows are from, None if they are from elsewhere."""
        return None

    def load(self, seed: int) -> Splits:
        """Return the splits, by prompt and stratified by label.

        Raises:
            DataError: see `table`; unknown columns, or rows that cannot be used.
        """
        source, present, rows = self.table()
        rows = [*rows]
        examples, dropped = self.usable(source, self.examples(source, present, rows, self.file()))
        if not examples:
            raise DataError(f"{source}: no rows; expected at least one")
        return replace(self.cut(examples, dropped, seed), form=self.form(source, present))

    def form(self, source: str, present: Sequence[str]) -> str:
        """Return the format of rows with these columns, in words."""
        return str(self.columns(source, present))

    def columns(self, source: str, present: Sequence[str]) -> Columns:
        """Return where the parts of an example are in rows with these columns."""
        names = ("prompt", "response", "label", "options")
        return find_columns(source, present, **{name: getattr(self, name) for name in names})

    def cut(self, examples: Sequence[Example], dropped: RowCounts, seed: int) -> Splits:
        """Return examples as splits, by prompt and stratified by label.

        Args:
            examples: different ones; see `usable`.
            dropped: the counts of the other rows that were read.
        """
        splits = split_by_group(
            examples,
            seed,
            validation_share=self.validation_share,
            test_share=self.test_share,
            repeats=True,
        )
        return replace(splits, dropped=dropped)

    def examples(
        self,
        source: str,
        present: Sequence[str],
        rows: Iterable[Row | Unusable],
        file: Path | None = None,
    ) -> list[Example | Unusable]:
        """Return an example for each row, or why there is none; see `load` for the errors.

        Args:
            source: where the rows are from, in words.
            file: the file that they are from, beside which their tools may be.
        """
        found = [*rows]
        unread = [row for row in found if isinstance(row, Unusable)]
        if found and len(unread) == len(found):
            return [*unread]  # the columns are not to blame
        return to_examples(found, self.columns(source, present), self.tools_beside(file))

    def tools_beside(self, file: Path | None) -> list[Any]:
        """Return the functions that the assistant may call in the rows of a file.

        Raises:
            DataError: their file cannot be read, or holds no list of objects.
        """
        path = expanded(self.tools) if self.tools else None
        if path is None and file is not None:
            beside = tools_file(file)
            path = beside if beside.is_file() else None
        if path is None:
            return []
        try:
            return tools_of(path.read_text(encoding="utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: tools cannot be read: {error}") from error
        except RowFault as error:
            raise DataError(str(error)) from error

    def usable(
        self, source: str, found: Sequence[Example | Unusable]
    ) -> tuple[tuple[Example, ...], RowCounts]:
        """Return the different examples among what was found, and the counts of other rows.

        Two are the same only if they are equal in whole, letter by letter.

        Raises:
            DataError: rows cannot be used and are not to be dropped, or none can be used.
        """
        examples = [row for row in found if isinstance(row, Example)]
        others = [row for row in found if isinstance(row, Unusable)]
        if others and (self.unusable == "refuse" or not examples):
            what = f"row(s) cannot be used, of {len(found)}"
            what += "; data.unusable=drop leaves them out" if examples else ""
            raise too_many(source, what, others)
        unique = tuple(dict.fromkeys(examples))
        repeated, empty = len(examples) - len(unique), sum(row.empty for row in others)
        return unique, RowCounts.of(repeated=repeated, empty=empty, refused=len(others) - empty)

"""Rows with columns as a dataset: what files, the Hub and rows in memory have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from fedmoe.data.columns import Row, find_columns, to_examples
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Share, Splits, split_by_group
from fedmoe.section import section


@section
class Table(Dataset):
    """Rows whose columns hold a prompt, a response and perhaps a label."""

    prompt: str = ""
    """Column of the prompt, or a template: "{instruction} {input}". Empty: the usual names."""
    response: str = ""
    """Column of the response. Empty: the usual names."""
    label: str = ""
    """Column to partition by, such as category. Empty: all rows are alike."""
    verify: Literal["exact", "likelihood"] = "exact"
    """The score: whether the free-running answer is the response but for spacing, or, where
    many answers are right, how likely the model finds the response: exp(-loss), in 0 to 1."""
    test_share: Share = 0.15
    """Share of the prompts that are held out for testing."""
    validation_share: Share = 0.1
    """Share of the prompts that are held out for validation."""

    def table(self) -> tuple[str, Sequence[str], Iterable[Row]]:
        """Return the source in words, the names of its columns, and its rows.

        Raises:
            DataError: the rows cannot be read.
        """
        raise NotImplementedError

    def load(self, seed: int) -> Splits:
        """Return the splits, by prompt and stratified by label.

        Raises:
            DataError: see `table`; unknown columns, or rows that cannot be used.
        """
        return self.split(self.examples(*self.table()), seed)

    def split(self, examples: Sequence[Example], seed: int) -> Splits:
        """Return examples as splits, by prompt and stratified by label."""
        return split_by_group(
            examples, seed, validation_share=self.validation_share, test_share=self.test_share
        )

    def examples(
        self, source: str, present: Sequence[str], rows: Iterable[Row]
    ) -> tuple[Example, ...]:
        """Return one example per row; see `load` for the errors."""
        columns = find_columns(
            source, present, prompt=self.prompt, response=self.response, label=self.label
        )
        return to_examples(source, rows, columns)

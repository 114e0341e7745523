"""Any dataset of instructions and responses on the Hugging Face Hub, or a local folder of one."""

from typing import Any, Literal

from fedmoe.data.columns import find_columns, to_examples
from fedmoe.data.examples import Example, Share, Splits, exact_match, split_by_group
from fedmoe.errors import DataError
from fedmoe.section import section


@section
class HuggingFace:
    """A dataset by its id, such as databricks/databricks-dolly-15k; columns as in `files`.

    Of rows with the same prompt the first is kept.
    """

    name: Literal["hub"] = "hub"
    path: str
    """The dataset's id, or a local folder of its Parquet, CSV or JSON-lines files."""
    subset: str = ""
    """The dataset's configuration, such as main; empty where it has but one."""
    split: str = "train"
    """The split our own splits are cut from; train[:3000] takes the first 3,000 rows."""
    prompt: str = ""
    """Column of the prompt, or a template: "{instruction} {input}". Empty: the usual names."""
    response: str = ""
    """Column of the response. Empty: the usual names."""
    label: str = ""
    """Column to partition by, such as category. Empty: all rows are alike."""
    verify: Literal["exact", "likelihood"] = "exact"
    """What a score is: whether the free-running answer is the response but for spacing, or, where
    many answers are right, how likely the model finds the response: exp(-loss), in 0 to 1."""
    test_share: Share = 0.15
    """Share of the prompts that are held out for testing."""
    validation_share: Share = 0.1
    """Share of the prompts that are held out for validation."""

    def load(self, seed: int) -> Splits:
        """Return the splits, by prompt and stratified by label.

        Raises:
            DataError: the dataset cannot be had, unknown columns, rows that cannot be used.
        """
        table = _load_dataset(self.path, self.subset, self.split)
        columns = find_columns(
            self.path,
            list(table.column_names),
            prompt=self.prompt,
            response=self.response,
            label=self.label,
        )
        rows = ((f"row {number}", row) for number, row in enumerate(table, 1))
        return split_by_group(
            to_examples(self.path, rows, columns),
            seed,
            validation_share=self.validation_share,
            test_share=self.test_share,
        )

    def score(self, example: Example, answer: str) -> float:
        """Return 1 when the answer is the response but for spacing, else 0."""
        return exact_match(example, answer)


def _load_dataset(path: str, subset: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, subset or None, split=split)
    # datasets 5.2 and the libraries under it raise a dozen unrelated types for what is all one
    # thing to the user: this dataset cannot be had.
    except Exception as error:
        raise DataError(
            f"{path}: cannot load split {split!r}"
            + (f" of subset {subset!r}" if subset else "")
            + f": {type(error).__name__}: {str(error).strip()}\n"
            "  Check the id, subset and split, and that the Hub can be reached (a private dataset"
            " needs `hf auth login`).\n"
            "  Without a network: download it elsewhere, copy the folder here and set path to it,"
            " or use the dataset `files`."
        ) from error

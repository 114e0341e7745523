"""Any dataset of instructions and responses on the Hugging Face Hub, or a local folder of one."""

from collections.abc import Iterator
from typing import Any, Literal

from fedmoe.data.columns import Row
from fedmoe.data.conversations import without_nulls
from fedmoe.data.table import Table
from fedmoe.errors import DataError
from fedmoe.section import section
from fedmoe.system.files import expanded


@section
class HuggingFace(Table):
    """A dataset by its id, such as databricks/databricks-dolly-15k; columns and repeated rows are
    treated as in `files`.
    """

    name: Literal["hub"] = "hub"
    path: str
    """The dataset's id, or a local folder of its Parquet, CSV or JSON-lines files."""
    subset: str = ""
    """The dataset's configuration, such as main; empty where it has but one."""
    split: str = "train"
    """The split our own splits are cut from; train[:3000] takes the first 3,000 rows."""

    def table(self) -> tuple[str, list[str], Iterator[Row]]:
        """Return the rows of the split; a DataError says why it cannot be had."""
        found = _load_dataset(str(expanded(self.path)), self.subset, self.split)
        bare = ({k: without_nulls(v) for k, v in row.items()} for row in found)
        rows = ((f"row {number}", row) for number, row in enumerate(bare, 1))
        return self.path, list(found.column_names), rows


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

"""Datasets and how they are shared out among clients.

In reading order:
    examples.py       Example, Splits; splitting by group without leaks
    dataset.py        the base of datasets
    home_assistant/   spoken smart-home commands, built in
    reasoning.py      reasoning puzzles made from a seed, built in
    files.py, hub.py, memory.py  your own rows; table.py is what they share, columns.py finds the
                      prompt and the response in them
    options.py        the options of multiple-choice rows
    federated.py      rows that come split by client
    partition.py      which client holds which examples
    conversations.py  rows as messages, from the usual formats
    text.py           token ids, and batches of them
    templates.py      conversations as token ids, by a chat template
    wording.py        all examples as token ids; those that are too long are refused, cut or counted
    shown.py          examples as a reader sees them
    held_out.py       why a split is empty, and what to set
    manifest.py       what each client holds, as numbers and hashes

To add a dataset, write `data/<name>.py` with a @section that derives from `Dataset`, and name it in
`DATASETS`; a partition derives from `Partition` and is named in `PARTITIONS`. From outside this
package no list is needed: give an instance, or `package.module:Name` in YAML.
"""

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example, Splits, check_disjoint
from fedmoe.data.federated import Federated
from fedmoe.data.files import LocalFiles
from fedmoe.data.home_assistant.dataset import HomeAssistant
from fedmoe.data.hub import HuggingFace
from fedmoe.data.manifest import manifest, manifest_rows
from fedmoe.data.memory import Memory
from fedmoe.data.partition import PARTITIONS, Given, Partition, partition
from fedmoe.data.reasoning import ReasoningGym
from fedmoe.errors import DataError
from fedmoe.section import Open

DATASETS = Open(
    "fedmoe.datasets",
    Dataset,
    (HomeAssistant, ReasoningGym, LocalFiles, HuggingFace, Memory, Federated),
)
"""Components that `data` in a configuration may name."""

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "Example",
    "Federated",
    "Given",
    "Memory",
    "Partition",
    "Splits",
    "check_disjoint",
    "load_splits",
    "manifest",
    "manifest_rows",
    "partition",
]


def load_splits(dataset: Dataset, seed: int) -> Splits:
    """Return the examples of a dataset; train, validation and test share no prompt.

    Raises:
        DataError: the examples cannot be read, or are no splits.

    Example:
        >>> len(load_splits(ReasoningGym(tasks=("chain_sum",), per_task=20), seed=0).test)
        3
    """
    splits = dataset.load(seed)
    if not isinstance(splits, Splits):
        kind = type(splits).__name__
        raise DataError(
            f"the dataset {dataset.name!r} loads as {kind}; its `load` should return "
            "fedmoe.data.Splits"
        )
    check_disjoint(splits, repeats=dataset.repeats)
    return splits

"""Datasets and how they are shared out among clients.

In reading order:
    examples.py        Example, Splits; splitting by group without leaks
    home_assistant.py  spoken smart-home commands, built in (home_*.py: templates, words, grammar)
    reasoning.py       reasoning puzzles made from a seed, built in
    digits.py          handwritten digits, for image classifiers
    files.py, hub.py   your own rows; columns.py finds the prompt and the response in them
    partition.py       which client holds which examples
    manifest.py        what each client holds, as numbers and hashes

To add a dataset, write `data/<name>.py` with a @section of that name with `load(seed) -> Splits`
and `score(example, answer) -> float`, and name it in `Dataset`. A partitioner is a @section in
`partition.py` with `num_clients` and `split(labels, rng)`, named in `Partition`.
"""

from fedmoe.data.digits import Digits
from fedmoe.data.examples import Example, Splits, check_disjoint
from fedmoe.data.files import LocalFiles
from fedmoe.data.home_assistant.dataset import HomeAssistant
from fedmoe.data.hub import HuggingFace
from fedmoe.data.manifest import manifest, manifest_table
from fedmoe.data.partition import Partition, partition
from fedmoe.data.reasoning import ReasoningGym

Dataset = HomeAssistant | ReasoningGym | LocalFiles | HuggingFace | Digits

__all__ = [
    "Dataset",
    "Example",
    "Partition",
    "Splits",
    "check_disjoint",
    "load_splits",
    "manifest",
    "manifest_table",
    "partition",
    "score",
]


def load_splits(config: Dataset, seed: int) -> Splits:
    """Return the examples of a dataset; train, validation and test share no prompt.

    Raises:
        DataError: the dataset cannot be read as asked.
    """
    splits = config.load(seed)
    check_disjoint(splits)
    return splits


def score(config: Dataset, example: Example, answer: str) -> float:
    """Return how right an answer is, from 0 to 1: the dataset's verifier, else exact match."""
    return config.score(example, answer)

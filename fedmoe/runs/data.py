"""The data of a run: each client's rows, the evaluation sets, and what the server may know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.data import load_splits, manifest, partition
from fedmoe.data.text import tokenize
from fedmoe.errors import DataError
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.metrics import checked
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.examples import Example
    from fedmoe.data.text import Tokens
    from fedmoe.evaluation.metrics import Metric


STAND_INS = 64
"""Examples that a client is taken to hold for an estimate of its costs, if nobody has said."""


@dataclass(frozen=True)
class DataFacts:
    """The server's knowledge of clients' data: numbers and digests, no rows."""

    lengths: tuple[tuple[int, ...], ...]
    """By client: the tokens of each of its examples."""
    manifest: dict[str, Any]
    sha256: str
    """A digest of all training and evaluation rows: the same in a run that is resumed."""
    most_length: int | None = None
    """Tokens of an example at most, where the clients alone know the lengths of theirs."""

    @property
    def mean_length(self) -> float:
        """Return the mean number of tokens of an example, over all clients; else the most."""
        if self.most_length is not None:
            return self.most_length
        return sum(map(sum, self.lengths)) / max(1, sum(map(len, self.lengths)))

    def lengths_of(self, client: int) -> Sequence[int]:
        """Return the tokens of each of a client's examples; stand-ins where it alone knows them."""
        if self.most_length is not None:
            return (self.most_length,) * STAND_INS
        return self.lengths[client]


@dataclass(frozen=True, eq=False)
class RunData:
    """Every client's rows and the evaluation sets, before the two sides are told apart."""

    rows: Mapping[int, Sequence[Tokens]]
    sets: dict[str, EvaluationSet]
    manifest: dict[str, Any]

    def facts(self) -> DataFacts:
        """Return the numbers and digests that the server side works with."""
        lengths = tuple(tuple(len(row.ids) for row in rows) for rows in self.rows.values())
        return DataFacts(lengths, self.manifest, self._digest())

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for rows in [*self.rows.values(), *(data.rows for data in self.sets.values())]:
            digest.update(f"{len(rows)}\0".encode())
            for row in rows:
                digest.update(np.asarray((row.prompt_length, *row.ids), dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]


def pooled_data(experiment: Experiment, tokenizer: Any, form: str) -> RunData:
    """Load one data set, and share its training examples out among clients.

    Raises:
        DataError: the data cannot be read as asked, or leave a client or an evaluation empty.
    """
    splits = load_splits(experiment.data, experiment.seed)
    train, rows = tokenize(splits.train, tokenizer, experiment.text, form)
    parts = partition(experiment.partition, [e.label for e in train], experiment.seed)
    return RunData(
        {client: tuple(rows[i] for i in part) for client, part in enumerate(parts)},
        evaluation_sets(experiment, splits.validation, splits.test, tokenizer, form),
        manifest(train, parts),
    )


def evaluation_sets(
    experiment: Experiment,
    validation: Sequence[Example],
    test: Sequence[Example],
    tokenizer: Any,
    form: str,
) -> dict[str, EvaluationSet]:
    """Return a fixed draw of the validation and of the test examples.

    Raises:
        DataError: there are none, or all of them are too long.
    """
    settings, sets = experiment.evaluation, {}
    for split, examples, most in (
        ("validation", validation, settings.validation_examples),
        ("test", test, settings.test_examples),
    ):
        if not examples:
            raise DataError(f"the dataset has no {split} examples")
        order = numpy_rng(experiment.seed, split).permutation(len(examples))[:most]
        drawn = [examples[i] for i in sorted(order)]
        kept, rows = tokenize(drawn, tokenizer, experiment.text, form)
        if not kept:
            raise DataError(f"all {split} examples are longer than text.max_length; raise it")
        sets[split] = EvaluationSet(split, kept, rows, verifier(experiment))
    return sets


def verifier(experiment: Experiment) -> Metric | None:
    """Return how a free-running answer is scored; None where likelihood is the score."""
    if experiment.evaluation.metric:
        return checked(experiment.evaluation.metric)
    if getattr(experiment.data, "verify", "exact") == "likelihood":
        return None
    return checked(experiment.data.score, f"the score of data.name {experiment.data.name!r}")

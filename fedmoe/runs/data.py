"""The data of a run: each client's rows, the evaluation sets, and what the server may know."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.data import load_splits, manifest, partition
from fedmoe.data.held_out import check_held_out
from fedmoe.data.text import tokenize, tokenize_splits
from fedmoe.errors import DataError, FedMoEWarning
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.metrics import checked
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.examples import Example
    from fedmoe.data.text import Tokens
    from fedmoe.evaluation.metrics import Metric
    from fedmoe.messages.rows import RowCounts


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
    rows: RowCounts | None
    """What became of every row that was read; None where clients alone know."""
    scored: Mapping[str, int]
    """Examples of each evaluation set, which may be fewer than are held out for it."""
    most_length: int | None = None
    """Tokens of an example at most, where the clients alone know the lengths of theirs."""

    @property
    def mean_length(self) -> float:
        """Return the mean number of tokens of an example, over all clients; else the most."""
        if self.most_length is not None:
            return self.most_length
        return sum(map(sum, self.lengths)) / max(1, sum(map(len, self.lengths)))

    def account(self) -> list[str]:
        """Return what became of the rows, in lines for a terminal."""
        if self.rows is None:
            return []
        lines = [f"rows: {self.rows}", *(f"  {reason}" for reason in self.rows.reasons())]
        for split, number in self.scored.items():
            if number < (held_out := getattr(self.rows, split)):
                lines.append(
                    f"  {number:,} of {held_out:,} held-out {split} rows are scored "
                    f"(evaluation.{split}_examples)"
                )
        return lines

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
    counts: RowCounts
    """What became of every row that was read."""

    def facts(self) -> DataFacts:
        """Return the numbers and digests that the server side works with."""
        lengths = tuple(tuple(len(row.ids) for row in rows) for rows in self.rows.values())
        scored = {split: len(data.rows) for split, data in self.sets.items()}
        return DataFacts(lengths, self.manifest, self._digest(), self.counts, scored)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for rows in [*self.rows.values(), *(data.rows for data in self.sets.values())]:
            digest.update(f"{len(rows)}\0".encode())
            for row in rows:
                digest.update(np.asarray((row.prompt_length, *row.ids), dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]


def pooled_data(experiment: Experiment, tokenizer: Any, form: str) -> RunData:
    """Load one data set, and share its training examples out among clients.

    It warns where more than 5 % of the rows are dropped.

    Raises:
        DataError: the data cannot be read as asked, or leave a client or an evaluation empty.
    """
    loaded = load_splits(experiment.data, experiment.seed)
    check_held_out(experiment.data, loaded)
    splits, rows = tokenize_splits(loaded, tokenizer, experiment.text, form)
    if said := splits.rows.warning():
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    labels = [example.label for example in splits.train]
    parts = partition(experiment.partition, labels, experiment.seed, splits.rows)
    return RunData(
        {client: tuple(rows["train"][i] for i in part) for client, part in enumerate(parts)},
        evaluation_sets(experiment, splits.validation, splits.test, tokenizer, form),
        manifest(splits.train, parts),
        splits.rows,
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
        sets[split] = EvaluationSet(split, kept, rows, verifier(experiment))
    return sets


def verifier(experiment: Experiment) -> Metric | None:
    """Return how a free-running answer is scored; None where likelihood is the score."""
    if experiment.evaluation.metric:
        return checked(experiment.evaluation.metric)
    if getattr(experiment.data, "verify", "exact") == "likelihood":
        return None
    return checked(experiment.data.score, f"the score of data.name {experiment.data.name!r}")

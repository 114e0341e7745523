"""The data of a run: each client's rows, the evaluation sets, and what the server may know."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmoe.data import load_splits, manifest, partition
from fedmoe.data.held_out import check_held_out
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import FedMoEWarning
from fedmoe.runs.evaluation_sets import evaluation_sets

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.text import Tokens
    from fedmoe.evaluation.evaluate import EvaluationSet
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
    rows: RowCounts
    """What became of every row that was read."""
    scored: Mapping[str, int]
    """Examples of each evaluation set, which may be fewer than are held out for it."""
    most_length: int | None = None
    """Tokens of an example at most, where the clients alone know the lengths of theirs."""
    answers: Mapping[str, int] = field(default_factory=dict)
    """Answers that are held out for each evaluation set: of conversations more than rows."""
    form: str = ""
    """The format of the rows in words, where it was recognised."""
    metrics: tuple[str, ...] = ()
    """The names of the metrics, the score's first."""
    notes: tuple[str, ...] = ()
    """The metrics in words, why they were chosen, and what of the answers they cannot reach."""

    target_share: float = 1.0
    """The part of all tokens that belongs to responses; 1 where nobody has said."""

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

    def as_manifest(self) -> dict[str, Any]:
        """Return what `manifest.json` says before any client has told of rows of its own."""
        return self.manifest | {"rows": self.rows.as_json()}

    def header(self) -> dict[str, Any]:
        """Return what the ledger's first line says of them."""
        return {"notes": self.notes} | ({"rows": self.rows.as_json()} if self.rows.read else {})

    def account(self) -> list[str]:
        """Return what became of the rows, in lines for a terminal."""
        lines = [f"format: {self.form}"] if self.form else []
        lines += [f"rows: {self.rows}", *(f"  {reason}" for reason in self.rows.reasons())]
        for split, number in self.scored.items():
            rows = getattr(self.rows, split)
            if number < (held_out := self.answers.get(split, rows)):
                what = "rows" if held_out == rows else f"answers, in {rows:,} rows,"
                lines.append(
                    f"  {number:,} of {held_out:,} held-out {split} {what} are scored "
                    f"(evaluation.{split}_examples)"
                )
        return [*lines, *self.notes]


@dataclass(frozen=True, eq=False)
class RunData:
    """Every client's rows and the evaluation sets, before the two sides are told apart."""

    rows: Mapping[int, Sequence[Tokens]]
    sets: dict[str, EvaluationSet]
    manifest: dict[str, Any]
    counts: RowCounts
    """What became of every row that was read."""
    form: str = ""
    """The format of the rows in words, where it was recognised."""
    score: str = ""
    """The metrics in words, and why they were chosen."""

    def facts(self) -> DataFacts:
        """Return the numbers and digests that the server side works with."""
        lengths = tuple(tuple(len(row.ids) for row in rows) for rows in self.rows.values())
        every = [row for rows in self.rows.values() for row in rows]
        scored = {split: len(data.rows) for split, data in self.sets.items()}
        answers = {split: data.held_out for split, data in self.sets.items()}
        return DataFacts(
            lengths,
            self.manifest,
            self._digest(),
            self.counts,
            scored,
            answers=answers,
            form=self.form,
            metrics=tuple(self.sets["test"].metrics),
            notes=(self.score, *(note for data in self.sets.values() for note in data.notes)),
            target_share=sum(r.num_targets for r in every) / sum(len(r.ids) - 1 for r in every),
        )

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for rows in [*self.rows.values(), *(data.rows for data in self.sets.values())]:
            digest.update(f"{len(rows)}\0".encode())
            for row in rows:
                digest.update(np.asarray(row.numbers, dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]


def pooled_data(experiment: Experiment, tokenizer: Any, form: str) -> RunData:
    """Load one data set, and share its training examples out among clients.

    It warns where more than 5 % of the rows are dropped.

    Raises:
        DataError: the data cannot be read as asked, or leave a client or an evaluation empty.
    """
    loaded = load_splits(experiment.data, experiment.seed)
    check_held_out(experiment.data, loaded)
    text, unusable = experiment.data.wording(experiment.text), unusable_rows(experiment)
    splits, rows = tokenize_splits(loaded, tokenizer, text, form, unusable=unusable)
    if said := splits.rows.warning():
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    labels = [example.label for example in splits.train]
    parts = partition(experiment.partition, labels, experiment.seed, splits.rows)
    sets, score = evaluation_sets(experiment, splits.validation, splits.test, tokenizer, form)
    return RunData(
        {
            client: tuple(row for i in part for row in rows["train"][i])
            for client, part in enumerate(parts)
        },
        sets,
        {"clients": []} if experiment.hides_clients else manifest(splits.train, parts),
        splits.rows,
        splits.form,
        score,
    )


def unusable_rows(experiment: Experiment) -> Literal["refuse", "drop"]:
    """Return the treatment of rows that cannot be used."""
    return getattr(experiment.data, "unusable", "refuse")

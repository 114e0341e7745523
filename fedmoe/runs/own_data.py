"""Clients' own rows as token ids: each client's are read at its turn, and not kept for long."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.text import tokenize, tokenize_splits
from fedmoe.errors import DataError, FedMoEWarning
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.messages.rows import RowCounts
from fedmoe.runs.data import DataFacts, verifier
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.text import Tokens

AT_CLIENTS = "at the clients"
"""In place of a digest of rows that no single process holds."""
SERVER = "server"
"""The split of the server's own rows."""
MOST_LOADED = 32
"""Clients whose token ids stay in memory; the one used longest ago makes room."""


@dataclass(frozen=True)
class ClientData:
    """One client's rows."""

    train: tuple[Tokens, ...]
    sets: Mapping[str, EvaluationSet]
    """Its held-out rows by split; those that it scores at most."""
    counts: RowCounts


class OwnData(Mapping[str, Sequence["Tokens"]]):
    """The training rows of the clients that are here, by name; `of` has all that a client holds."""

    def __init__(self, local: LocalData, experiment: Experiment, tokenizer: Any, form: str) -> None:
        """Prepare to read: nothing is read yet.

        Args:
            local: where the rows are.
            experiment: how rows are split, tokenised and scored.
            tokenizer: the model's.
            form: the model's form of task.
        """
        self.local, self.experiment = local, experiment
        self.tokenizer, self.form = tokenizer, form
        self.loaded: OrderedDict[str, ClientData] = OrderedDict()

    def of(self, name: str) -> ClientData:
        """Return a client's rows.

        Raises:
            DataError: they cannot be read or used, or none is left to train on; says why.
        """
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
            if len(self.loaded) > MOST_LOADED:
                self.loaded.popitem(last=False)
        self.loaded.move_to_end(name)
        return self.loaded[name]

    def __getitem__(self, name: str) -> Sequence[Tokens]:
        return self.of(name).train

    def __contains__(self, name: object) -> bool:
        return name in self.local.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.local.names)

    def __len__(self) -> int:
        return len(self.local.names)

    def _load(self, name: str) -> ClientData:
        e = self.experiment
        try:
            loaded = self.local.splits(name, e.seed)
            splits, rows = tokenize_splits(loaded, self.tokenizer, e.text, self.form, ("train",))
        except DataError as error:
            raise DataError(f"client {name!r}: {error}") from error
        most = {"validation": e.evaluation.validation_examples, "test": e.evaluation.test_examples}
        sets = {
            split: self._drawn(split, getattr(splits, split), rows[split], number)
            for split, number in most.items()
            if rows[split]
        }
        return ClientData(tuple(rows["train"]), sets, splits.rows)

    def _drawn(
        self, split: str, examples: Sequence[Any], rows: Sequence[Tokens], most: int
    ) -> EvaluationSet:
        """Return at most so many rows of a split, drawn from the seed."""
        order = sorted(numpy_rng(self.experiment.seed, split).permutation(len(rows))[:most])
        chosen = [examples[i] for i in order]
        return EvaluationSet(split, chosen, [rows[i] for i in order], verifier(self.experiment))


def federated_facts(experiment: Experiment) -> DataFacts:
    """Return what a server knows before its clients have said anything: nothing of their rows."""
    return DataFacts(
        lengths=(),
        manifest={"num_examples": 0, "clients": []},
        sha256=AT_CLIENTS,
        rows=RowCounts(),
        scored={},
        most_length=experiment.text.max_length,
    )


def server_sets(experiment: Experiment, tokenizer: Any, form: str) -> dict[str, EvaluationSet]:
    """Return the server's own test set, if the configuration names one.

    It warns where more than 5 % of its rows are dropped.

    Raises:
        DataError: its file cannot be read, or has no usable row.
    """
    data = experiment.data
    if not isinstance(data, Federated) or not (path := data.server_test):
        return {}
    examples, dropped = LocalData(data).read(Path(path).expanduser())
    kept, rows = tokenize(examples, tokenizer, experiment.text, form)
    counts = dropped + RowCounts.of(test=len(kept), too_long=len(examples) - len(kept))
    if said := counts.warning(f"data.server_test, {path},"):
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    if not rows:
        raise DataError(f"{path}: every row has more than text.max_length tokens; raise it")
    order = numpy_rng(experiment.seed, SERVER).permutation(len(rows))
    order = sorted(order[: experiment.evaluation.test_examples])
    chosen = [kept[i] for i in order], [rows[i] for i in order]
    return {SERVER: EvaluationSet(SERVER, *chosen, verifier(experiment))}

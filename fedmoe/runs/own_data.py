"""Clients' own rows as token ids: each client's are read at its turn, and not kept for long."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.data.examples import Splits
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import DataError, FedMoEWarning
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.metrics import of_owners
from fedmoe.messages.rows import RowCounts
from fedmoe.runs.data import DataFacts, unusable_rows
from fedmoe.runs.evaluation_sets import Drawing
from fedmoe.system.files import expanded

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
    form: str = ""
    """The format of its rows in words."""


class OwnData(Mapping[str, Sequence["Tokens"]]):
    """The training rows of the clients that are here, by name; `of` has all that a client holds."""

    def __init__(self, local: LocalData, experiment: Experiment, tokenizer: Any, form: str) -> None:
        """Prepare to read: nothing is read yet."""
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
            splits, rows = tokenize_splits(
                loaded,
                self.tokenizer,
                e.data.wording(e.text),
                self.form,
                ("train",),
                unusable=unusable_rows(e),
            )
            sets = self._sets(splits)
        except DataError as error:
            raise DataError(f"client {name!r}: {error}") from error
        train = tuple(row for own in rows["train"] for row in own)
        lost = sum(data.unreachable for data in sets.values())
        return ClientData(train, sets, replace(splits.rows, unreachable=lost), splits.form)

    def _sets(self, splits: Splits) -> dict[str, EvaluationSet]:
        e = self.experiment
        most = {"validation": e.evaluation.validation_examples, "test": e.evaluation.test_examples}
        drawing = Drawing(e, self.tokenizer, self.form, warns=False)
        chosen = of_owners(e.evaluation.metric, e.data)
        return {
            split: drawing.scored(split, drawing.draw(split, examples, number), chosen)
            for split, number in most.items()
            if (examples := getattr(splits, split))
        }


def federated_facts(experiment: Experiment) -> DataFacts:
    """Return what a server knows before its clients have said anything: nothing of their rows."""
    chosen = of_owners(experiment.evaluation.metric, experiment.data)
    return DataFacts(
        lengths=(),
        manifest={"num_examples": 0, "clients": []},
        sha256=AT_CLIENTS,
        rows=RowCounts(),
        scored={},
        most_length=experiment.text.max_length,
        metrics=chosen.names,
        notes=(chosen.note(),),
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
    e, most = experiment, experiment.evaluation.test_examples
    examples, dropped = LocalData(data).read(expanded(path))
    try:
        splits, _ = tokenize_splits(
            Splits((), (), examples, dropped),
            tokenizer,
            data.wording(e.text),
            form,
            ("test",),
            unusable=data.unusable,
        )
        drawing = Drawing(e, tokenizer, form)
        drawn = drawing.draw(SERVER, splits.test, most)
        found = drawing.scored(SERVER, drawn, of_owners(e.evaluation.metric, data))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if said := splits.rows.warning(f"data.server_test, {path},"):
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    return {SERVER: found}

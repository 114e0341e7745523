"""The rows that an opened source is scored on, and the settings by which they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.data import load_splits
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import SPLITS, Splits
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.data.table import Table
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import ConfigError, DataError
from fedmoe.evaluation.metric import Metric
from fedmoe.evaluation.metrics import named_metrics, of_owners
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.runs.data import unusable_rows

if TYPE_CHECKING:
    from fedmoe.export.scored import Source

EVERY = 2**31
Split = Literal["all", "train", "validation", "test"]
COLUMNS = ("prompt", "response", "label", "options", "tools", "unusable")
"""Settings of a run's own rows that hold for others, too."""


def rows_to_score(
    opened: Source,
    data: Path | str | Dataset | None,
    overrides: Sequence[str] = (),
    split: Split | None = None,
    unusable: dict[str, str] | None = None,
) -> tuple[Experiment, dict[str, Splits]]:
    """Return the settings by which rows are scored, and the usable rows by owner, as test rows.

    The arguments, and the errors, are those of `evaluate`; `unusable`, where given, collects the
    owners none of whose rows can be used, with the reason.
    """
    e, found = _experiment(opened, data, overrides), {}
    for name, splits in _splits(e, split or ("all" if data else "test")):
        try:
            found[name] = _tokenized(name, splits, e, opened)
        except DataError as error:
            if unusable is None:
                raise
            unusable[name] = str(error)
    return e, found


def _experiment(
    opened: Source, data: Path | str | Dataset | None, overrides: Sequence[str]
) -> Experiment:
    """Return the settings by which rows are read, worded and scored."""
    e = opened.experiment
    rows = e.data if data is None else data if isinstance(data, Dataset) else _data_at(data, e.data)
    scored = EvaluationSettings(batch_size=e.evaluation.batch_size, test_examples=EVERY)
    made = Experiment(model=e.model, data=rows, text=e.text, seed=e.seed, evaluation=scored)
    metrics = named_metrics(e.evaluation.metric)
    if data is None and isinstance(rows, Federated):
        metrics = (*of_owners(e.evaluation.metric, rows).metrics.values(),)
    # The run's metrics, as far as these rows have what they need.
    fit = tuple(m for m in metrics if not isinstance(m, Metric) or not [*m.faults(made)])
    made = replace(made, evaluation=replace(scored, metric=fit or None))
    if not overrides:
        return made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluate.yaml"
        path.write_text(to_yaml(made), encoding="utf-8")
        try:
            return load_experiment(path, overrides)
        except ConfigError as error:
            raise ConfigError("settings", error.faults) from None


def _data_at(path: Path | str, own: Dataset) -> Dataset:
    """Return the rows of a file, or of a folder with a file for each owner."""
    place = Path(path).expanduser()
    kept = {name: getattr(own, name) for name in COLUMNS if isinstance(own, Table)}
    kind = Federated if place.is_dir() else LocalFiles
    return kind(path=str(path), **kept)


def _splits(experiment: Experiment, split: Split) -> Iterator[tuple[str, Splits]]:
    """Yield the rows to score of each owner, or of the data as a whole, as test rows."""
    data, seed = experiment.data, experiment.seed
    if split == "all" and isinstance(data, Table):
        # Rows then stay in their order.
        data = replace(data, validation_share=0.0, test_share=0.0)
    if isinstance(data, Federated):
        local = LocalData(data)
        for name in local.names:
            yield name, _part(local.splits(name, seed), split)
    else:
        name = Path(data.path).stem if isinstance(data, LocalFiles) else str(data.name)
        yield name, _part(load_splits(data, seed), split)


def _part(splits: Splits, split: Split) -> Splits:
    """Return one part of the splits as test rows."""
    names = SPLITS if split == "all" else (split,)
    rows = tuple(example for name in names for example in getattr(splits, name))
    return replace(splits, train=(), validation=(), test=rows)


def _tokenized(name: str, splits: Splits, e: Experiment, opened: Source) -> Splits:
    """Return the rows that can be scored, and the counts of the others."""
    if not splits.test:
        return splits
    text, form = e.data.wording(e.text), opened.model.form.name
    try:
        unusable = unusable_rows(e)
        return tokenize_splits(splits, opened.tokenizer, text, form, ("test",), unusable=unusable)[
            0
        ]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error

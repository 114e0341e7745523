"""Scores of a run's adapter, an exported adapter or a base model on any data."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.data import load_splits
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import SPLITS, Splits
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.data.shown import template_line
from fedmoe.data.table import Table
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import ConfigError, DataError, FedMoEError
from fedmoe.evaluation.evaluate import (
    ClientScore,
    Evaluation,
    EvaluationSet,
    Measured,
    evaluation_of,
)
from fedmoe.evaluation.metric import Metric
from fedmoe.evaluation.metrics import named_metrics, of_owners, of_rows
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.export.scored import Source, open_source
from fedmoe.messages.rows import RowCounts
from fedmoe.messages.scores import Scores
from fedmoe.runs.data import unusable_rows
from fedmoe.runs.evaluation_sets import Drawing, Drawn

EVERY = 2**31
Split = Literal["all", "train", "validation", "test"]
COLUMNS = ("prompt", "response", "label", "options", "tools", "unusable")
"""Settings of a run's own rows that hold for others, too."""


@dataclass(frozen=True)
class Evaluated:
    """Scores on data, and what became of their rows."""

    evaluations: tuple[Evaluation, ...]
    """One a tier; `clients` has the scores of each file, where there are several."""
    rows: Mapping[str, RowCounts]
    """By file or client."""
    notes: tuple[str, ...]
    """The metrics in words, why they were chosen, and what of the answers they cannot reach."""
    answers: tuple[Mapping[str, Any], ...] = ()
    """Every prompt with its response, answer and scores, if they were asked for."""
    sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    """What was scored, by file or client."""

    @property
    def scores(self) -> dict[str, float]:
        """Each tier's score, from 0 to 1."""
        return {found.tier: found.score for found in self.evaluations}


def evaluate(
    source: Path | str,
    data: Path | str | Dataset | None = None,
    overrides: Sequence[str] = (),
    *,
    split: Split | None = None,
    tiers: Sequence[str] = (),
    which: Literal["last", "best"] = "last",
    base: str = "",
    answers: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluated:
    """Score a run's adapter, an exported adapter or a base model on any data.

    Rows are read and worded as a run's are, by the run's own text settings. All of them are scored
    unless `evaluation.test_examples` says how many.

    Args:
        source: a run's folder, that of an exported adapter, `mini`, or a model's folder or Hub id.
        data: a file, a folder with a file for each owner, or a data set; a run's own when omitted.
        overrides: dotted settings, such as `data.prompt=question` or `evaluation.metric=token_f1`.
        split: the part to score; `all` when omitted, but `test` of a run's own data.
        tiers: tiers of a run; all of them when empty.
        which: the adapter after a run's last or best round.
        base: the base model of an exported adapter, if it is no longer where the adapter says.
        answers: also return every prompt with its answer, generated even if no metric reads it.
        say: is told how many rows are scored, before they are, and of each tier.

    Raises:
        FedMoEError: whatever of it cannot be done as requested.

    Example:
        >>> found = evaluate("runs/quickstart", "rows.jsonl", tiers=["low"])  # doctest: +SKIP
        >>> found.scores["low"]  # doctest: +SKIP
        0.5
    """
    opened = open_source(source, which, base, tiers)
    if data is None and not opened.is_run:
        raise FedMoEError(f"{source} is no run, and so has no data of its own; name some (--data)")
    experiment, found = rows_to_score(opened, data, overrides, split)
    sets, notes = _sets(experiment, opened, found)
    rows = {name: splits.rows for name, splits in found.items()}
    own = data is None and split in (None, "test")
    say(_to_score(opened, experiment, sets, own))
    evaluations, records = [], []
    for number, tier in enumerate(opened.tiers, 1):
        say(f"scoring at tier {tier!r} ({number} of {len(opened.tiers)})")
        result, measured = _at_tier(opened, tier, sets, experiment.evaluation.batch_size)
        evaluations.append(result)
        if answers:
            records += [r for name, one in measured.items() for r in _records(tier, name, one)]
    return Evaluated(tuple(evaluations), rows, notes, tuple(records), sets)


def _to_score(opened: Source, e: Experiment, sets: Mapping[str, EvaluationSet], own: bool) -> str:
    """Return how many rows are scored; also how many the run took, where that is fewer."""
    count = sum(len(one.examples) for one in sets.values())
    took = opened.experiment.evaluation.test_examples
    if own and len(sets) == 1 and e.evaluation.test_examples == EVERY and took < count:
        return f"all {count:,} test rows; the run scored {took:,}"
    return f"{count:,} rows to score"


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


def _at_tier(
    opened: Source, tier: str, sets: Mapping[str, EvaluationSet], batch_size: int
) -> tuple[Evaluation, dict[str, Measured]]:
    """Return the scores at a tier, and what was measured of each owner's rows."""
    top_k, started = opened.tiers[tier](), time.monotonic()
    measured = {
        name: Measured(opened.model, opened.tokenizer, of, batch_size) for name, of in sets.items()
    }
    sums = {name: one.sums() for name, one in measured.items()}
    clients = tuple(
        ClientScore(client=n, name=name, examples=s.examples, tokens=s.tokens, **s.means)
        for n, (name, s) in enumerate(sums.items())
    )
    owners = {"clients": clients} if len(clients) > 1 else {}
    seconds, total = time.monotonic() - started, Scores.total(sums.values())
    return evaluation_of(total, opened.round, tier, top_k, seconds, **owners), measured


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


def _sets(
    e: Experiment, opened: Source, found: Mapping[str, Splits]
) -> tuple[dict[str, EvaluationSet], tuple[str, ...]]:
    """Return the answers to score by owner, and what is to be said of them."""
    drawing = Drawing(e, opened.tokenizer, opened.model.form.name)
    most = e.evaluation.test_examples
    drawn: dict[str, Drawn] = {
        name: drawing.draw("test", splits.test, most)
        for name, splits in found.items()
        if splits.test
    }
    if not drawn:
        raise DataError("there is no row to score in this part of the data")
    examples = [example for one in drawn.values() for example in one.examples]
    sizes = [size for one in drawn.values() for size in one.sizes]
    chosen = of_rows(e.evaluation.metric, e.data, examples, sizes)
    sets = {name: drawing.scored("test", one, chosen) for name, one in drawn.items()}
    counted = Counter(note for one in sets.values() for note in one.notes)
    wording = template_line(opened.tokenizer, e.data.wording(e.text))
    return sets, (chosen.note(), *([wording] if drawing.form == "causal" else []), *counted)


def _records(tier: str, name: str, measured: Measured) -> Iterator[dict[str, Any]]:
    """Yield every prompt with its response, answer and scores."""
    for n, example in enumerate(measured.data.examples):
        scores = {metric: each[n] for metric, each in measured.scores.items()}
        yield {
            "tier": tier,
            "rows": name,
            "prompt": example.prompt,
            "response": example.response,
            "answer": measured.answers[n],
            "scores": scores,
        }

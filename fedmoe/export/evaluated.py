"""Scores of a run's adapter, an exported adapter or a base model on any data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedmoe.config import Experiment
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Splits
from fedmoe.data.shown import template_line
from fedmoe.errors import DataError, FedMoEError
from fedmoe.evaluation.evaluate import (
    ClientScore,
    Evaluation,
    EvaluationSet,
    Measured,
    evaluation_of,
)
from fedmoe.evaluation.metrics import of_rows
from fedmoe.export.rows import EVERY, Split, rows_to_score
from fedmoe.export.scored import Source, open_source
from fedmoe.messages.rows import RowCounts
from fedmoe.messages.scores import Scores
from fedmoe.runs.evaluation_sets import Drawing, Drawn


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
    """The rows that were scored, by file or client."""

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

"""A sample of a run's rows that are here, each with its owner and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.config import Experiment
from fedmoe.config.paths import saved_experiment
from fedmoe.data import partition
from fedmoe.data.examples import Example
from fedmoe.data.federated import Federated
from fedmoe.data.text import Tokens
from fedmoe.errors import DataError
from fedmoe.export.rows import rows_to_score
from fedmoe.report.run import Run
from fedmoe.report.units import listed
from fedmoe.runs.evaluation_sets import Drawing
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.export.scored import Source


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows with their token ids, owners and labels; a label is empty where a row has none."""

    rows: Sequence[Tokens]
    owners: Sequence[str]
    labels: Sequence[str]
    notes: tuple[str, ...] = ()


def routed_rows(
    opened: Source, run: Run, data: Path | None, overrides: Sequence[str], most: int
) -> Sample:
    """Return rows to see the routing of, evenly many of each owner.

    They are the run's own training rows, or all those of `data`. Rows of owners that withhold
    anything, or whom the run does not know by name, are left out, even if they are here.

    Raises:
        DataError: there are none here.
    """
    split, unusable = "train" if data is None else "all", dict[str, str]()
    e, found = rows_to_score(opened, data, overrides, split, unusable)
    by_owner = {name: splits.test for name, splits in found.items()}
    notes = [f"no row of {len(unusable)} owner(s) can be used: {why}" for why in _first(unusable)]
    if data is None and isinstance(e.data, Federated):
        told = {run.name_of(client) for client in run.names if client not in run.withheld}
        if hidden := {*by_owner} - told:
            notes.append(f"rows of {len(hidden)} owner(s) that withhold something are not used")
        by_owner = {name: rows for name, rows in by_owner.items() if name in told}
        if away := sorted(told - {*by_owner, *unusable}):
            notes.append(f"the rows of {len(away)} owner(s) are not here: {listed(away)}")
    elif data is None and by_owner:
        by_owner = _shared_out(run, e, next(iter(by_owner.values())))
    return _drawn(opened, e, by_owner, most, notes)


def scored_rows(opened: Source, owners: Sequence[str], most: int) -> Sample:
    """Return held-out rows of a run's own data; of owners with rows of their own, of these alone.

    Raises:
        DataError: there are none here.
    """
    e, found = rows_to_score(opened, None, unusable={})
    own = isinstance(e.data, Federated)
    kept = {name: s.test for name, s in found.items() if not own or name in owners}
    return _drawn(opened, e, kept, most, [])


def _first(unusable: Mapping[str, str]) -> list[str]:
    return [f"such as {why}" for why in [*unusable.values()][:1]]


def _shared_out(run: Run, e: Experiment, rows: Sequence[Example]) -> dict[str, Sequence[Example]]:
    """Return pooled training rows by the client that the run's partition gave them to."""
    rule = saved_experiment(run.folder).partition
    parts = partition(rule, [row.label for row in rows], e.seed)
    return {run.name_of(n): [rows[i] for i in part] for n, part in enumerate(parts)}


def _drawn(
    opened: Source,
    e: Experiment,
    by_owner: Mapping[str, Sequence[Example]],
    most: int,
    notes: Sequence[str],
) -> Sample:
    """Return at most so many rows, evenly many of each owner, drawn from the run's seed."""
    there = {name: rows for name, rows in by_owner.items() if rows}
    if not there:
        raise DataError("; ".join(["there are no rows here to look at", *notes]))
    drawing = Drawing(e, opened.tokenizer, opened.model.form.name, warns=False)
    each, found, long = max(1, most // len(there)), list[tuple[Any, str, str]](), 0
    for name, rows in sorted(there.items()):
        picked = numpy_rng(e.seed, "explain", name).permutation(len(rows))[:each]
        drawn = drawing.draw("test", [rows[i] for i in sorted(picked)], each)
        long += min(each, drawn.held_out) - len({id(example) for example in drawn.examples})
        found += [(row, name, x.label) for row, x in zip(drawn.rows, drawn.examples, strict=True)]
    rows, owners, labels = zip(*found, strict=True)
    said = f"{long} of the rows drawn are longer than text.max_length, and left out"
    return Sample(rows, owners, labels, (*notes, *([said] if long else [])))

"""The work of a run's experts as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedmoe.config.paths import saved_experiment
from fedmoe.errors import DataError, FedMoEError, not_one_of
from fedmoe.explain.calibration import Calibration, calibration
from fedmoe.explain.lift import Lifts, lifts
from fedmoe.explain.measured import confidence, measured
from fedmoe.explain.recorded import Recorded, recorded, total_variation
from fedmoe.explain.redundancy import Redundancy, redundancy
from fedmoe.explain.sample import Sample, routed_rows, scored_rows
from fedmoe.export.scored import Source, open_source
from fedmoe.report.run import Run, read_run
from fedmoe.seeds import numpy_rng

MOST_ROWS = 512
"""Rows that are looked at, unless told otherwise."""
DIGITS = 6


@dataclass(frozen=True, eq=False)
class Moved:
    """The routing of the same rows with the adapter and without, by layer."""

    changed: np.ndarray
    """(layers,): the share of choices of an expert that the base model does not make."""
    distance: np.ndarray
    """(layers,): total variation between the loads of experts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """Experts and whom they fire for, their likeness, and how far confidence can be trusted.

    Parts that a run's folder and the rows here cannot give are None or empty; `notes` say why.
    """

    name: str
    complete: bool
    round: int
    tier: str = ""
    """The tier at whose k rows were routed."""
    top_k: int = 0
    num_layers: int = 0
    num_experts: int = 0
    num_rows: int = 0
    """Rows whose routing was looked at."""
    split: Literal["", "training", "given"] = ""
    """Whether they are the run's training rows, or those of `data`."""
    recorded: Recorded | None = None
    groups: tuple[Lifts, ...] = ()
    """By label, by owner, or by role where there are neither."""
    moved: Moved | None = None
    redundancy: Redundancy | None = None
    calibration: tuple[Calibration, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as numbers and text; what cannot be given is null."""
        return _plain(self)


def explain(
    folder: Path | str,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    tier: str = "",
    which: Literal["last", "best"] = "last",
    rows: int = MOST_ROWS,
) -> Explained:
    """Look at the experts of a finished or interrupted run.

    Args:
        data: a file, or a folder with a file for each owner, in place of the run's own rows.
        overrides: dotted settings for `data`, such as `data.prompt=question`.
        tier: the tier at whose k rows are routed; that with the largest k when omitted.
        which: the adapter after the last or the best round.
        rows: the number of rows to look at, at most.

    Raises:
        FedMoEError: the folder is no run's, there is no such tier, or `data` cannot be used.

    Example:
        >>> found = explain("runs/quickstart")  # doctest: +SKIP
        >>> found.groups[0].names  # doctest: +SKIP
        ('climate', 'light')
    """
    run = read_run(Path(folder))
    known = saved_experiment(run.folder).budget.resolved(run.header["full_top_k"])
    if tier and tier not in known:
        raise FedMoEError(f"--tier {not_one_of(tier, [*known])}")
    common = [name for name in known if not known[name].subset]
    facts: dict[str, Any] = {
        "name": run.header["name"],
        "complete": run.complete,
        "recorded": recorded(run),
    }
    try:
        opened = open_source(run.folder, which, "", common or [*known])
        chosen = tier or max(opened.tiers, key=lambda name: known[name].top_k)
        if chosen not in opened.tiers:
            raise FedMoEError(f"--tier {tier!r}: its clients keep unlike experts; name another one")
        facts |= _looked_at(opened, run, chosen, data, overrides, rows)
        subset = [name for name in known if name not in common]
        said = "measured without {}: each of its clients keeps experts of its own"
        facts["notes"] += tuple(said.format(f"tier {name!r}") for name in subset)
    except FedMoEError as error:
        if data is not None or (tier and tier not in common):
            raise
        said = f"only what the run recorded is shown, as nothing could be measured here: {error}"
        facts |= {"round": run.num_finished, "notes": (said,)}
    return Explained(**facts)


def _looked_at(
    opened: Source, run: Run, tier: str, data: Path | None, overrides: Sequence[str], most: int
) -> dict[str, Any]:
    """Return everything that rows tell of the model."""
    sample = routed_rows(opened, run, data, overrides, most)
    top_k, model = opened.tiers[tier](), opened.model
    e, pad = opened.experiment, opened.tokenizer.pad_token_id
    size = e.evaluation.batch_size
    seen = measured(model, sample.rows, size, pad)
    by_row, load = seen.counts.sum(1), seen.counts.sum((0, 1))
    notes = [*sample.notes]
    try:
        tested = sample if data else scored_rows(opened, sample.owners, most)
        notes += [f"for calibration, {note}" for note in tested.notes if not data]
    except DataError as error:
        tested = sample
        notes.append(f"calibration is on the same rows, which were trained on: {error}")
    found = _groups(sample, seen.counts, e.seed)
    if not found:
        notes.append("there are no groups to compare: rows of one owner have no labels here")
    errors = []
    for name, use in opened.tiers.items():
        k = use()
        sums = confidence(model, tested.rows, size, pad)
        errors.append(calibration(name, k, sums, numpy_rng(e.seed, "explain", "calibration", name)))
    return {
        "round": opened.round,
        "tier": tier,
        "top_k": top_k,
        "num_layers": by_row.shape[1],
        "num_experts": by_row.shape[2],
        "num_rows": len(by_row),
        "split": "given" if data else "training",
        "groups": found,
        "moved": Moved(seen.changed, total_variation(load, seen.base)),
        "redundancy": redundancy(seen.similarity, load, seen.tokens),
        "calibration": tuple(errors),
        "notes": tuple(notes),
    }


def _groups(sample: Sample, counts: np.ndarray, seed: int) -> tuple[Lifts, ...]:
    """Return the lifts of labels and of owners; of roles where rows have neither."""
    named = {"label": sample.labels, "owner": sample.owners}
    if sample.labels == sample.owners:
        del named["label"]  # a federation in memory labels rows by their owner
    found = [
        lifts(kind, counts.sum(1), groups, numpy_rng(seed, "explain", kind))
        for kind, groups in named.items()
    ]
    if not any(of and of.kind == "label" for of in found):
        # The two parts of a row count as two rows.
        roles, parts = ["prompt", "response"] * len(counts), counts.reshape(-1, *counts.shape[2:])
        kept = parts.sum((1, 2)) > 0
        named_roles = [role for role, keep in zip(roles, kept, strict=True) if keep]
        found.append(lifts("role", parts[kept], named_roles, numpy_rng(seed, "explain", "role")))
    return tuple(of for of in found if of)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "bi" else np.round(value, DIGITS).tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value

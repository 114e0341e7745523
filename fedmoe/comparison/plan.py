"""Every run of a comparison, checked before the first one starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from fedmoe.comparison.baselines import BASELINES, Clients, scored
from fedmoe.comparison.config import TEST_EXAMPLES, Comparison, Overrides, slug
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.constraints import check
from fedmoe.config.explain import explain
from fedmoe.config.load import load
from fedmoe.config.place import Place
from fedmoe.errors import ConfigError, Fault, ModelError
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.memory.meta import meta_model
from fedmoe.system.files import expanded
from fedmoe.system.shipped import find_beside

PAIRED = ("data", "text", "partition", "clients_per_round", "devices", "adapter", "evaluation")
"""Sections that determine the data split, client samples, initial adapter and scores."""
SEARCH = "search"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, or of the search before it."""

    case: str
    variant: str
    experiment: Experiment
    settings: Overrides = ()
    """Settings that this run of the search tries, or that were chosen for its variant."""
    scored: Clients | None = None
    """The tiers that count and their clients, if not those of the run; see `baselines.scored`."""


def planned(config: Path, overrides: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of a comparison's file; see `first_plan`.

    Raises:
        ConfigError: with the faults of the file, or of the first faulty run.
    """
    return first_plan(load(Comparison, config, overrides), config)


def first_plan(comparison: Comparison, config: Path) -> list[PlannedRun]:
    """Return the runs of the results as if the search had chosen its first point.

    Raises:
        ConfigError: with the faults of the first faulty run.
    """
    chosen = {name: points[0] for name in comparison.variants if (points := grid(comparison, name))}
    return results_of(comparison, config, chosen)


def results_of(
    comparison: Comparison, config: Path, chosen: Mapping[str, Overrides]
) -> list[PlannedRun]:
    """Return the runs of the results; one seed after another, for early results to be paired."""
    parent = folder_of(comparison)
    runs, unchanged = [], []
    for seed in comparison.seeds:
        for place, (case, shared) in enumerate(comparison.in_cases.items()):
            folder = parent / f"{place}-{slug(case)}" if case else parent
            for number, (variant, own) in enumerate(comparison.settings.items()):
                settings = tuple(chosen.get(variant, ()))
                name = f"{number}-{slug(variant)}-seed{seed}"
                layers = [*comparison.overrides, *shared, *own, *settings]
                where = f"cases.{case}, variants.{variant}" if case else f"variants.{variant}"
                made = _experiment(comparison, config, where, layers, seed, name, folder)
                unchanged.append(PlannedRun(case, variant, made, settings))
                runs.append(_changed(comparison, where, unchanged[-1]))
    _check_paired(comparison, config, unchanged)
    return runs


def search_of(comparison: Comparison, config: Path) -> list[PlannedRun]:
    """Return the runs of the search: every point of the grid, for every variant."""
    if comparison.search is None:
        return []
    search, shared = comparison.search, next(iter(comparison.in_cases.values()))
    everywhere = {*search.grid, *(path for own in search.variants.values() for path in own)}
    fixed = [(f"cases.{name}", own, everywhere) for name, own in comparison.in_cases.items()]
    fixed += [
        (f"variants.{name}", own, {*search.grid, *search.variants.get(name, ())})
        for name, own in comparison.settings.items()
    ]
    faults = [
        Fault(f"{where}: {path}", "is what the search chooses")
        for where, own, searched in fixed
        for path in sorted(searched)
        if any(_touches(text, path) for text in own)
    ]
    runs = []
    for number, (variant, own) in enumerate(comparison.settings.items()):
        if comparison.baselines.get(variant) == "zero_rounds":
            continue
        for settings in grid(comparison, variant):
            layers = [*comparison.overrides, *shared, *own, *search.overrides, *settings]
            where = f"search, variants.{variant}"
            # By its values: a grid that is widened keeps the runs that it has.
            name = "-".join([str(number), slug(variant), *map(slug, settings)])
            folder = folder_of(comparison) / SEARCH
            made = _experiment(comparison, config, where, layers, search.seed, name, folder)
            if made.evaluation.every == 0:
                faults.append(
                    Fault(f"{where}: evaluation.every", "is 0; a search reads validation scores")
                )
            runs.append(_changed(comparison, where, PlannedRun(SEARCH, variant, made, settings)))
    if faults:
        raise ConfigError(str(config), dict.fromkeys(faults))
    return runs


def _touches(override: str, path: str) -> bool:
    """Return True if an override sets the value at `path`, a part of it, or a section around it."""
    ours = override.partition("=")[0].strip()
    return f"{ours}.".startswith(f"{path}.") or f"{path}.".startswith(f"{ours}.")


def grid(comparison: Comparison, variant: str) -> list[Overrides]:
    """Return every combination of the values to search for a variant; none without a search."""
    if (search := comparison.search) is None:
        return []
    axes = [
        [f"{path}={json.dumps(value)}" for value in values]  # JSON is YAML
        for path, values in (search.grid | search.variants.get(variant, {})).items()
    ]
    return list(itertools.product(*axes))


def folder_of(comparison: Comparison) -> Path:
    """Return the folder of a comparison."""
    return expanded(comparison.folder) / comparison.name


def _experiment(
    comparison: Comparison,
    config: Path,
    where: str,
    layers: Sequence[str],
    seed: int,
    name: str,
    folder: Path,
) -> Experiment:
    path = find_beside(comparison.experiment, config.parent)
    usual = f"evaluation.test_examples={TEST_EXAMPLES}"
    fixed = [f"seed={seed}", f"name={name}", f"simulation.folder={json.dumps(str(folder))}"]
    with _placed(where, str(path)):
        return load_experiment(path, [usual, *layers, *fixed])


def _changed(comparison: Comparison, where: str, run: PlannedRun) -> PlannedRun:
    """Return a run as its baseline changes it, if it is one, and as far as it can be checked."""
    kind, made = comparison.baselines.get(run.variant), run.experiment
    shapes = _shapes(made.model)
    full_top_k = shapes.full_top_k if shapes else None
    with _placed(where, comparison.experiment):
        if kind:
            changed = BASELINES[kind](made, full_top_k)
            run = replace(run, experiment=changed, scored=scored(kind, made, full_top_k))
        if shapes:
            check(run.experiment, shapes)
    return run


@contextmanager
def _placed(where: str, file: str) -> Iterator[None]:
    """Name the run of a comparison in which a fault is."""
    try:
        yield
    except (ConfigError, ValidationError) as error:
        # A baseline changes an experiment in Python, where pydantic itself raises.
        own = (
            error.faults
            if isinstance(error, ConfigError)
            else explain(error, Place(Experiment), {})
        )
        faults = [Fault(f"{where}: {f.path}", f.message) for f in own]
        raise ConfigError(file, faults) from None


@cache
def _shapes(model: ModelSettings) -> AdaptedModel | None:
    """Return a model as shapes, from its config alone, or None if that cannot be read yet.

    The error, if there is one, is that of the first run.
    """
    try:
        return meta_model(model, LoRA())
    except ModelError:
        return None


def _check_paired(comparison: Comparison, config: Path, runs: Sequence[PlannedRun]) -> None:
    """Refuse variants whose difference to the reference would not be due to the method."""
    faults = []
    of_first_seed = [run for run in runs if run.experiment.seed == comparison.seeds[0]]
    bases = {r.case: r.experiment for r in of_first_seed if r.variant == comparison.reference}
    for run in of_first_seed:
        ours, base = run.experiment, bases[run.case]
        where = f"cases.{run.case}, " if run.case else ""
        differ = [what for what in PAIRED if getattr(ours, what) != getattr(base, what)]
        if ours.model.path != base.model.path:
            differ.append("model.path")
        if list(ours.budget.tiers) != list(base.budget.tiers):
            differ.append("budget.tiers")
        differ += [
            f"budget.tiers.{tier}.{what}"
            for tier in ours.budget.tiers.keys() & base.budget.tiers.keys()
            for what in ("share", "clients")
            if getattr(ours.budget.tiers[tier], what) != getattr(base.budget.tiers[tier], what)
        ]
        for what in differ:
            names = " in its names" if what == "budget.tiers" else ""
            message = f"differs{names} from {comparison.reference!r}'s; pairs need the same"
            faults.append(Fault(f"{where}variants.{run.variant}: {what}", message))
    if faults:
        raise ConfigError(str(config), faults)

"""The search for settings: the outcome of each point, and the best one of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedmoe.comparison.bracket import brackets
from fedmoe.comparison.config import Comparison, Overrides
from fedmoe.comparison.plan import PlannedRun, grid
from fedmoe.comparison.result import as_scored, last_validation
from fedmoe.comparison.study import Trial
from fedmoe.report.run import read_run


def read_trial(run: PlannedRun, folder: Path) -> Trial:
    """Return the outcome of a finished run of the search."""
    found = last_validation(as_scored(read_run(folder), run.scored))
    assert found, folder
    return Trial(run.variant, run.settings, *found)


def choose(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials with the best of each variant marked.

    The best has the lowest validation loss, then the highest score, then comes first. A loss tells
    settings apart after a few rounds on a few examples, where exact answers are still chance.
    """
    best: dict[str, Trial] = {}
    for trial in trials:
        known = best.get(trial.variant)
        if known is None or (-trial.loss, trial.score) > (-known.loss, known.score):
            best[trial.variant] = trial
    return [replace(trial, chosen=trial is best[trial.variant]) for trial in trials]


def chosen_settings(trials: Sequence[Trial]) -> dict[str, Overrides]:
    """Return the chosen settings of every variant that has some."""
    return {trial.variant: trial.settings for trial in trials if trial.chosen}


def widened(comparison: Comparison, trials: Sequence[Trial]) -> Comparison:
    """Return the comparison with values beyond every best one that is at the edge of its grid.

    All variants that share a setting share its values, so that their budgets remain the same.
    """
    if (search := comparison.search) is None:
        return comparison
    shared, own = dict(search.grid), {name: dict(grid) for name, grid in search.variants.items()}
    for found in brackets(trials):
        part = shared if found.setting in shared else own[found.variant]
        new = [value for value in found.lacks if value not in part[found.setting]]
        part[found.setting] = (*part[found.setting], *new)
    return replace(comparison, search=replace(search, grid=shared, variants=own))


def describe(comparison: Comparison) -> str:
    """Return a sentence on the search for the report; empty without a search."""
    if comparison.search is None:
        return ""
    search = comparison.search
    own = f", with {' '.join(search.overrides)}" if search.overrides else ""
    case = next(iter(comparison.in_cases))
    numbers = [len(grid(comparison, variant)) for variant in comparison.variants]
    least, most = min(numbers), max(numbers)
    budget = (
        f"the same {least}" if least == most else f"{least} to {most} (settings that are its own)"
    )
    return (
        f"Every variant had {budget} points, each run once on seed "
        f"{search.seed}, which the results do not use{own}{f', in case {case}' if case else ''}. "
        "Chosen by the last validation loss, mean of the tiers."
    )

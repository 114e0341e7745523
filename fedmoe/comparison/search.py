"""The search for settings: what was tried for every variant, and which point is the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedmoe.comparison.config import Comparison, Overrides
from fedmoe.comparison.plan import Planned, grid
from fedmoe.comparison.report import Trial
from fedmoe.comparison.report.result import as_scored, last_validation
from fedmoe.report.run import read_run


def read_trial(run: Planned, folder: Path) -> Trial:
    """What a finished run of the search found."""
    found = last_validation(as_scored(read_run(folder), run.scored))
    assert found, folder
    return Trial(run.variant, run.settings, *found)


def choose(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the best of each variant marked.

    The lowest validation loss; of equal ones the higher score, then the earlier trial. A loss tells
    settings apart after a few rounds on a few examples, where exact answers are still chance.
    """
    best: dict[str, Trial] = {}
    for trial in trials:
        held = best.get(trial.variant)
        if held is None or (-trial.loss, trial.score) > (-held.loss, held.score):
            best[trial.variant] = trial
    return [replace(trial, chosen=trial is best[trial.variant]) for trial in trials]


def chosen_settings(trials: Sequence[Trial]) -> dict[str, Overrides]:
    """The chosen settings of every variant that has one."""
    return {trial.variant: trial.settings for trial in trials if trial.chosen}


def in_words(comparison: Comparison) -> str:
    """What was searched and how, for the report."""
    if comparison.search is None:
        return ""
    search = comparison.search
    own = f", with {' '.join(search.overrides)}" if search.overrides else ""
    case = next(iter(comparison.in_cases))
    return (
        f"Every variant had the same {len(grid(comparison))} points, each run once on seed "
        f"{search.seed}, which is none of the results'{own}{f', in case {case}' if case else ''}. "
        "Chosen by the last validation loss, mean of the tiers."
    )

"""All of a comparison in turn: the plan, the search, the runs, the report."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from fedmoe.comparison.baselines import BASELINES
from fedmoe.comparison.board import Board
from fedmoe.comparison.config import Comparison
from fedmoe.comparison.plan import Planned, folder_of, planned, results_of, search_of
from fedmoe.comparison.report import MEAN, Case, Result, Study, Trial, Variant, read_result
from fedmoe.comparison.report.files import write_numbers, write_pages
from fedmoe.comparison.report.markdown import render_markdown
from fedmoe.comparison.runs import carry_out, check_alike, ended
from fedmoe.comparison.runs import folder_of as run_folder
from fedmoe.comparison.search import choose, chosen_settings, in_words, read_trial
from fedmoe.config import Experiment
from fedmoe.config.load import load
from fedmoe.runs.resume import alone_in


def compare(config: Path, overrides: list[str], quiet: bool, console: Console) -> Path:
    """Run what is missing, write the report, and return its folder.

    Raises:
        FedMoEError: a faulty file; a finished run in the folder whose settings are others.
    """
    comparison = load(Comparison, config, overrides)
    # All of both, before the first run: a fault must not wait for hours.
    planned(config, overrides)
    searches = search_of(comparison, config)
    parent = folder_of(comparison)
    parent.mkdir(parents=True, exist_ok=True)
    with alone_in(parent, "comparison"):
        trials = _search(searches, quiet, console)
        runs = results_of(comparison, config, chosen_settings(trials))
        study = _results(comparison, runs, trials, quiet, console)
    if console.is_terminal:
        console.print()
    console.print(render_markdown(study, short=True), markup=False, soft_wrap=True)
    return parent


def _search(runs: Sequence[Planned], quiet: bool, console: Console) -> list[Trial]:
    """The outcome of every run of the search, the best of each variant marked."""
    if not runs:
        return []
    trials = []
    with Board(runs, quiet=quiet, console=console) as board:
        for run in runs:
            folder, seconds, before = _done(run, board)
            trials.append(read_trial(run, folder))
            board.ended(run, trials[-1].score, seconds, before=before)
    return choose(trials)


def _results(
    comparison: Comparison,
    runs: Sequence[Planned],
    trials: Sequence[Trial],
    quiet: bool,
    console: Console,
) -> Study:
    """The comparison with all results; its report is written, also when it is interrupted."""
    results: list[Result] = []
    parent = folder_of(comparison)
    try:
        with Board(runs, quiet=quiet, console=console) as board:
            for run in runs:
                folder, seconds, before = _done(run, board)
                result = _result(run, folder)
                assert result, folder
                check_alike(result, results)
                results.append(result)
                board.ended(run, result.scores[MEAN], seconds, before=before)
                write_numbers(study_of(comparison, runs, results, trials), parent)
    except BaseException:
        if results:
            with suppress(Exception):  # what stopped it must be seen, not a fault of its report
                write_pages(study_of(comparison, runs, results, trials), parent)
        raise
    study = study_of(comparison, runs, results, trials)
    write_pages(study, parent)
    return study


def _done(run: Planned, board: Board) -> tuple[Path, float, bool]:
    """The folder of a run that has ended, its seconds, and whether it had ended before."""
    if ended(run.experiment):
        folder = run_folder(run.experiment)
        return folder, _seconds(run, folder), True
    display = board.begins(run)
    folder = carry_out(run.experiment, display)
    return folder, board.standing.elapsed, False


def study_of(
    comparison: Comparison,
    runs: Sequence[Planned],
    results: Sequence[Result],
    trials: Sequence[Trial],
) -> Study:
    """The comparison as far as it got."""
    experiments = {run.variant: run.experiment for run in reversed(runs)}
    cases = [
        Case(
            name=name,
            reference=comparison.reference,
            results=tuple(r for r in results if r.case == name),
            overrides=overrides,
            target=comparison.target,
            baselines=tuple(comparison.baselines),
        )
        for name, overrides in comparison.in_cases.items()
    ]
    return Study(
        name=comparison.name,
        reference=comparison.reference,
        cases=tuple(case for case in cases if case.results),
        variants={
            name: Variant(own, about(comparison, name, experiments[name]))
            for name, own in comparison.settings.items()
        },
        num_planned=len(runs),
        trials=tuple(trials),
        search=in_words(comparison),
    )


def about(comparison: Comparison, variant: str, experiment: Experiment) -> str:
    """Return what a baseline is, or an aggregation: the first line of its docstring."""
    kind = comparison.baselines.get(variant)
    described = BASELINES[kind] if kind else type(experiment.aggregation)
    return (inspect.getdoc(described) or "").partition("\n")[0]


def _result(run: Planned, folder: Path) -> Result | None:
    return read_result(run.variant, run.experiment.seed, folder, run.case, run.scored)


def _seconds(run: Planned, folder: Path) -> float:
    result = _result(run, folder)
    return result.seconds if result else 0.0

"""A whole comparison in turn: the plan, the search, the runs, the report."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from fedmoe.comparison.baselines import ARMS, BASELINES
from fedmoe.comparison.board import Board, show_scores
from fedmoe.comparison.config import Comparison
from fedmoe.comparison.files import write_numbers, write_pages
from fedmoe.comparison.plan import PlannedRun, first_plan, folder_of, results_of, search_of
from fedmoe.comparison.result import MEAN, Result, read_result
from fedmoe.comparison.runs import check_same_inputs, has_ended, run_to_end
from fedmoe.comparison.runs import folder_of as run_folder
from fedmoe.comparison.search import choose, chosen_settings, describe, read_trial, widened
from fedmoe.comparison.study import Case, Study, Trial, VariantInfo
from fedmoe.config.load import load
from fedmoe.config.schema import Experiment
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.system.locks import alone_in


def compare(
    config: Path, overrides: Sequence[str] = (), quiet: bool = False, console: Console | None = None
) -> Path:
    """Run the comparison that a YAML file describes; see `run_comparison`.

    Raises:
        ConfigError: the file, the overrides or a run that they ask for are faulty.
        FedMoEError: a finished run in the folder has other settings.
    """
    return run_comparison(load(Comparison, config, overrides), config, quiet, console)


def run_comparison(
    comparison: Comparison,
    source: Path = Path("comparison"),
    quiet: bool = False,
    console: Console | None = None,
) -> Path:
    """Run what is missing of a comparison, write its report, and return its folder.

    Args:
        source: the file that it comes from; a relative `experiment` starts at its folder.
        quiet: show a line per run instead of a live table.
        console: shows progress and the scores at the end; nothing is shown without one.

    Raises:
        ConfigError: a run that it asks for is faulty.
        FedMoEError: a finished run in the folder has other settings.
    """
    console = console or Console(quiet=True)
    # All runs of both, before the first one starts: a fault must not wait for hours.
    first_plan(comparison, source)
    search_of(comparison, source)
    parent = folder_of(comparison)
    parent.mkdir(parents=True, exist_ok=True)
    with alone_in(parent, "comparison"):
        comparison, trials = _search(comparison, source, quiet, console)
        runs = results_of(comparison, source, chosen_settings(trials))
        study = _results(comparison, runs, trials, quiet, console)
    show_scores(study, console)
    return parent


def _search(
    comparison: Comparison, source: Path, quiet: bool, console: Console
) -> tuple[Comparison, list[Trial]]:
    """Return the outcome of every run of the search, with the best of each variant marked.

    Where a best value is at the edge of its grid, the comparison that is returned has more values.
    """
    trials: list[Trial] = []
    grown = False
    for _ in range(1 + comparison.search.widened if comparison.search else 0):
        done = {(t.variant, t.settings) for t in trials}
        more = widened(comparison, trials)
        try:
            runs = [r for r in search_of(more, source) if (r.variant, r.settings) not in done]
        except ConfigError:
            if not grown:
                raise
            break  # no run can have such a value: the report says that the best is at an edge
        if not runs:
            break
        comparison = more
        with Board(runs, quiet=quiet, console=console) as board:
            for run in runs:
                try:
                    folder, seconds, before = _done(run, board)
                    trials.append(read_trial(run, folder))
                except FedMoEError as error:
                    if not grown:
                        raise
                    # Nobody asked for this value: what cannot be trained with it is its edge.
                    board.console.print(f"{' '.join(run.settings)}: {error}", markup=False)
                    trials.append(Trial(run.variant, run.settings, 0.0, math.inf))
                    continue
                board.ended(run, trials[-1].loss, seconds, before=before)
        trials, grown = choose(trials), True
    return comparison, trials


def _results(
    comparison: Comparison,
    runs: Sequence[PlannedRun],
    trials: Sequence[Trial],
    quiet: bool,
    console: Console,
) -> Study:
    """Return the comparison with all results; its report is written even if interrupted."""
    results: list[Result] = []
    parent = folder_of(comparison)
    try:
        with Board(runs, quiet=quiet, console=console) as board:
            for run in runs:
                folder, seconds, before = _done(run, board)
                result = _result(run, folder)
                assert result, folder
                check_same_inputs(result, results)
                results.append(result)
                board.ended(run, result.losses[MEAN], seconds, before=before)
                write_numbers(study_of(comparison, runs, results, trials), parent)
    except BaseException:
        if results:
            with suppress(Exception):  # the user must see the cause, not a fault of this report
                write_pages(study_of(comparison, runs, results, trials), parent)
        raise
    study = study_of(comparison, runs, results, trials)
    write_pages(study, parent)
    return study


def _done(run: PlannedRun, board: Board) -> tuple[Path, float, bool]:
    """Return the folder of a finished run, its seconds, and whether it had ended before."""
    if has_ended(run.experiment):
        folder = run_folder(run.experiment)
        result = _result(run, folder)
        return folder, result.seconds if result else 0.0, True
    folder = run_to_end(run.experiment, board.begins(run))
    return folder, board.progress.elapsed, False


def study_of(
    comparison: Comparison,
    runs: Sequence[PlannedRun],
    results: Sequence[Result],
    trials: Sequence[Trial],
) -> Study:
    """Return the comparison as far as it got."""
    experiments = {run.variant: run.experiment for run in reversed(runs)}
    cases = [
        Case(
            name=name,
            reference=comparison.reference,
            results=tuple(r for r in results if r.case == name),
            overrides=overrides,
            target=comparison.target,
            target_loss=comparison.target_loss,
            baselines=tuple(n for n, kind in comparison.baselines.items() if kind not in ARMS),
        )
        for name, overrides in comparison.in_cases.items()
    ]
    return Study(
        name=comparison.name,
        reference=comparison.reference,
        cases=tuple(case for case in cases if case.results),
        variants={
            name: VariantInfo(own, _about(comparison, name, experiments[name]))
            for name, own in comparison.settings.items()
        },
        num_planned=len(runs),
        trials=tuple(trials),
        search=describe(comparison),
    )


def _result(run: PlannedRun, folder: Path) -> Result | None:
    return read_result(run.variant, run.experiment.seed, folder, run.case, run.scored)


def _about(comparison: Comparison, variant: str, experiment: Experiment) -> str:
    """Return the first line of the docstring of a baseline, or of an aggregation."""
    kind = comparison.baselines.get(variant)
    parts = [BASELINES[kind]] if kind else []
    parts += [] if kind and kind not in ARMS else [type(experiment.aggregation)]
    return " ".join((inspect.getdoc(part) or "").partition("\n")[0] for part in parts)

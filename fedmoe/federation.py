"""The library's way in from Python: whole runs by a call, and a federation round by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmoe.config import Experiment, load_experiment
from fedmoe.errors import FedMoEError
from fedmoe.export.finished import RunResults
from fedmoe.runs import session
from fedmoe.runs.resume import Resume


def run(
    config: Path | str | Experiment,
    overrides: Sequence[str] = (),
    *,
    resume: Resume = "no",
    display: session.Display | None = None,
) -> RunResults:
    """Run an experiment to its end and return its results.

    Args:
        config: a YAML file, or an experiment made in Python.
        overrides: dotted settings in place of the file's, such as `rounds=3`.
        resume: `auto` continues an interrupted run of this name, if nothing of it has changed;
            `anyway` continues it even then.
        display: shows the run while it runs; nothing is shown without one.

    Raises:
        FedMoEError: whatever cannot be done as requested; what was finished stays readable.

    Example:
        >>> import fedmoe
        >>> results = fedmoe.run("configs/quickstart.yaml", ["rounds=3"])  # doctest: +SKIP
        >>> results.scores["lowest"]  # doctest: +SKIP
        0.08
    """
    if isinstance(config, Experiment):
        if overrides:
            raise FedMoEError("overrides are for a YAML file; use dataclasses.replace instead")
        experiment = config
    else:
        experiment = load_experiment(config, overrides)
    return RunResults(session.run(experiment, display, resume=resume))


def open_run(folder: Path | str) -> RunResults:
    """Return the results of a run from its folder; the run may still be at work.

    Raises:
        FedMoEError: the folder is not a run's.

    Example:
        >>> import fedmoe
        >>> fedmoe.open_run("nowhere")
        Traceback (most recent call last):
        fedmoe.errors.FedMoEError: nowhere is not the folder of a run: it has no ledger.jsonl
    """
    path = Path(folder)
    if not (path / "ledger.jsonl").is_file():
        raise FedMoEError(f"{path} is not the folder of a run: it has no ledger.jsonl")
    return RunResults(path)

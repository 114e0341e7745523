"""One run of a comparison: done now, or taken from its folder if it ended there before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmoe.comparison.report import Result
from fedmoe.config import Experiment, load_experiment
from fedmoe.errors import CheckpointError, ConfigError, FedMoEError
from fedmoe.report.run import read_run
from fedmoe.runs import session
from fedmoe.runs.identity import libraries, settings_digest, written_identity
from fedmoe.runs.local.in_process import make_transport
from fedmoe.system.digests import code_digest

REMEDY = "remove it, or give the comparison another name"


def folder_of(experiment: Experiment) -> Path:
    """Where a run of a comparison is."""
    return Path(experiment.simulation.folder) / experiment.name


def ended(experiment: Experiment) -> bool:
    """Whether the run has ended in its folder before.

    Raises:
        FedMoEError: the folder holds a run of other settings, or one that other code finished.
    """
    folder = folder_of(experiment)
    config, about = folder / "config.yaml", folder / "environment.json"
    if config.exists() and not _same(config, about, experiment):
        raise FedMoEError(f"{folder} holds a run with other settings; {REMEDY}")
    if not (folder / "ledger.jsonl").exists() or not about.exists():
        return False
    if read_run(folder).end is None:
        return False
    if not _of_this_code(folder):
        raise FedMoEError(f"{folder} holds a run of other code than is installed now; {REMEDY}")
    theirs = written_identity(folder).get("libraries", libraries())
    if theirs != libraries():
        raise FedMoEError(f"{folder} holds a run with {theirs}; here is {libraries()}; {REMEDY}")
    return True


def carry_out(experiment: Experiment, display: session.Display) -> Path:
    """Run it to its end; an interrupted run of these very settings goes on where it was.

    What other code left is replaced.
    """
    folder = folder_of(experiment)
    if folder.exists() and not _of_this_code(folder):
        shutil.rmtree(folder)
    try:
        return session.run(experiment, display, make_transport, "auto")
    except CheckpointError as error:
        raise FedMoEError(f"{error}; or {REMEDY}") from error


def check_alike(found: Result, others: Sequence[Result]) -> None:
    """Refuse a run whose base model or examples are not those of the runs that it is held against.

    Each run says what it was of when it was made; a file may have been changed between two.

    Raises:
        FedMoEError: names both runs.
    """
    for name, what in (("model", "base model"), ("data", "examples")):
        for other in others:
            ours, theirs = (r.environment.get(f"identity.{name}") for r in (found, other))
            if not ours or not theirs or ours == theirs:
                continue
            if _asked(found, name) == _asked(other, name):
                raise FedMoEError(
                    f"{_named(found)} is a run with other {what} than {_named(other)} "
                    f"({ours}, not {theirs}): files were changed between them; give the "
                    "comparison another name, and all runs are made anew"
                )


def _asked(result: Result, name: str) -> tuple[object, ...]:
    """Return all that decides a run's model, or its examples, where no file is changed."""
    deciding = ("partition.",) if name == "data" else ("model.", "gating.")
    said = {key: value for key, value in result.settings.items() if key.startswith(deciding)}
    return result.case, result.seed if name == "data" else None, said


def _named(result: Result) -> str:
    where = f"{result.case}, " if result.case else ""
    return f"{where}{result.variant}, seed {result.seed}"


def _of_this_code(folder: Path) -> bool:
    return _said(folder / "environment.json").get("code") == code_digest()


def _same(config: Path, about: Path, experiment: Experiment) -> bool:
    """Whether a run was asked for the same, but for what changes no bit of a result.

    Its config may say more: there an automatic budget is planned.
    """
    if (asked := _said(about).get("requested")) is not None:
        return asked == settings_digest(experiment)
    try:
        other = load_experiment(config)
    except ConfigError:
        return False
    return replace(other, simulation=experiment.simulation) == experiment


def _said(about: Path) -> dict[str, Any]:
    """What a run says of itself; nothing where it does not."""
    return json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}

"""One run of a comparison: carried out now, or read from its folder if it ended before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmoe.comparison.result import Result
from fedmoe.config import Experiment, load_experiment
from fedmoe.errors import CheckpointError, ConfigError, FedMoEError
from fedmoe.report.run import read_run
from fedmoe.runs import session
from fedmoe.runs.identity import libraries, settings_digest
from fedmoe.runs.local.in_process import make_transport
from fedmoe.runs.round_files import written_identity
from fedmoe.system.digests import code_digest
from fedmoe.system.files import expanded

REMEDY = "remove it, or give the comparison another name"


def folder_of(experiment: Experiment) -> Path:
    """Return the folder of a run."""
    return expanded(experiment.simulation.folder) / experiment.name


def has_ended(experiment: Experiment) -> bool:
    """Return True if the run has ended in its folder before.

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


def run_to_end(experiment: Experiment, display: session.Display) -> Path:
    """Run to the end and return the folder; an interrupted run of the same settings is resumed.

    A folder that other code left is replaced.
    """
    folder = folder_of(experiment)
    if folder.exists() and not _of_this_code(folder):
        shutil.rmtree(folder)
    try:
        return session.run(experiment, display, make_transport, "auto")
    except CheckpointError as error:
        raise FedMoEError(f"{error}; or {REMEDY}") from error


def check_same_inputs(found: Result, others: Sequence[Result]) -> None:
    """Refuse a run whose base model or examples are not those of the runs it is compared with.

    Each run records its inputs; a file may have been changed between two runs.

    Raises:
        FedMoEError: inputs differ; the message names both runs.
    """
    for name, what in (("model", "base model"), ("data", "examples")):
        for other in others:
            ours, theirs = (r.environment.get(f"identity.{name}") for r in (found, other))
            if not ours or not theirs or ours == theirs:
                continue
            if _inputs(found, name) == _inputs(other, name):
                raise FedMoEError(
                    f"{_named(found)} is a run with other {what} than {_named(other)} "
                    f"({ours}, not {theirs}): files were changed between them; give the "
                    "comparison another name, and all runs are made anew"
                )


def _inputs(result: Result, name: str) -> tuple[object, ...]:
    """Return everything that determines a run's model, or its examples, if no file changes."""
    deciding = ("partition.",) if name == "data" else ("model.", "gating.")
    settings = {key: value for key, value in result.settings.items() if key.startswith(deciding)}
    return result.case, result.seed if name == "data" else None, settings


def _named(result: Result) -> str:
    where = f"{result.case}, " if result.case else ""
    return f"{where}{result.variant}, seed {result.seed}"


def _of_this_code(folder: Path) -> bool:
    return _read(folder / "environment.json").get("code") == code_digest()


def _same(config: Path, about: Path, experiment: Experiment) -> bool:
    """Return True if a run had the same settings, but for those that do not change its result.

    Its config may hold more: an automatic budget is planned there.
    """
    if (requested := _read(about).get("requested")) is not None:
        return requested == settings_digest(experiment)
    try:
        other = load_experiment(config)
    except ConfigError:
        return False
    return replace(other, simulation=experiment.simulation) == experiment


def _read(about: Path) -> dict[str, Any]:
    """Return the environment that a run recorded; empty if it recorded none."""
    return json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}

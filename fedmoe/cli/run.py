"""`fedmoe run`: a federated experiment on this machine."""

from __future__ import annotations

import json as json_text
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import waiting


@click.command()
@arguments.configured
@arguments.quiet
@click.option("--json", is_flag=True, help="Print one JSON line per event.")
@click.option(
    "--resume",
    type=click.Choice(["no", "auto", "anyway"]),
    default="no",
    help="auto: continue an interrupted run of this name, unless its config, code, model or data "
    "have changed; anyway: even then; no: start in a new folder.",
)
@click.option(
    "--faults",
    default="",
    metavar="LIST",
    help="Faults to inject, as a rehearsal: drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,"
    "kill-server@3 (the same as faults=LIST in the config).",
)
def run(
    config: Path,
    overrides: tuple[str, ...],
    quiet: bool,
    json: bool,
    resume: Any,
    faults: str | None,
) -> None:
    """Run an experiment: adapters, scores and a report in a folder.

    \b
    Examples:
      fedmoe run quickstart
      fedmoe run my.yaml aggregation.name=fedavg seed=1 --quiet
      fedmoe run my.yaml --resume auto
    """
    with nullcontext() if quiet or json else waiting("loading the libraries"):
        from fedmoe.config import load_experiment
        from fedmoe.federation import run
        from fedmoe.progress.table import LiveTable

    arguments.end_like_ctrl_c()
    experiment = load_experiment(config, [*overrides, *([f"faults={faults}"] if faults else [])])
    rounds, workers = experiment.rounds, experiment.simulation.workers
    display = LiveTable(num_rounds=rounds, workers=workers, quiet=quiet, json=json)
    results = run(experiment, resume=resume, display=display)
    if json:
        print(json_text.dumps({"kind": "folder", "folder": str(results.folder)}))
    else:
        print(results.report if results.report.exists() else results.folder / "summary.md")

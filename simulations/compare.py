"""`fedmoe compare`: variants of one experiment over several seeds, all else equal.

Within a seed every variant has the same data split, partition, client samples and test examples: a
variant may not change what they depend on, nor the tiers' names. A run that ended is not repeated.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console

from fedmoe.code import code_digest
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import load, to_yaml
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.report.comparison import Result, markdown, read_result, write_comparison
from fedmoe.section import section
from simulations.live import LiveTable
from simulations.run import run


@section
class Comparison:
    """Variants of one experiment over several seeds."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "comparison"
    """Name of its folder under `folder`."""
    folder: str = "runs"
    experiment: str
    """A YAML file of one experiment; a relative path starts at this file."""
    overrides: tuple[str, ...] = ()
    """Settings of all variants, as on the command line: `rounds=8`."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    variants: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    """Name and overrides of each variant."""
    reference: str
    """The variant that the others are compared with."""

    def __post_init__(self) -> None:
        if self.reference not in self.variants:
            names = ", ".join(map(repr, self.variants))
            raise ValueError(f"reference {self.reference!r} is not one of the variants: {names}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat")


def compare(config: Path, overrides: list[str], quiet: bool, console: Console) -> Path:
    """Run what is missing, write the tables and the plot, and return their folder.

    Raises:
        FedMoEError: a faulty file; a finished run in the folder whose settings are others.
    """
    comparison = load(Comparison, config, overrides)
    parent = Path(comparison.folder) / comparison.name
    runs = planned(config, overrides)  # all of them: a fault is found before the first run
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FedMoEError(f"another comparison is at work in {parent}") from None
        _run_all(runs, comparison.reference, parent, quiet, console)
    return parent


def _run_all(
    runs: list[tuple[str, Experiment]], reference: str, parent: Path, quiet: bool, console: Console
) -> None:
    results: list[Result] = []
    for number, (variant, experiment) in enumerate(runs, start=1):
        said = f"{number} of {len(runs)}: {variant}, seed {experiment.seed}"
        console.print(said, markup=False, highlight=False)
        results.append(_result(variant, experiment, quiet))
        write_comparison(results, reference, parent)
    console.print(markdown(results, reference), markup=False, soft_wrap=True)


def planned(config: Path, overrides: list[str]) -> list[tuple[str, Experiment]]:
    """Every variant and seed, a whole seed before the next, so that early results are paired."""
    comparison = load(Comparison, config, overrides)
    parent = Path(comparison.folder) / comparison.name
    path = config.parent / comparison.experiment
    runs = []
    for seed in comparison.seeds:
        for number, (variant, own) in enumerate(comparison.variants.items()):
            slug = "".join(c if c.isalnum() else "-" for c in variant)
            fixed = [
                f"seed={seed}", f"name={number}-{slug}-seed{seed}", f"simulation.folder={parent}",
            ]  # fmt: skip
            try:
                experiment = load_experiment(path, [*comparison.overrides, *own, *fixed])
            except ConfigError as error:
                faults = [Fault(f"variants.{variant}: {f.path}", f.message) for f in error.faults]
                raise ConfigError(str(path), faults) from None
            runs.append((variant, experiment))
    _check_paired(path, comparison.reference, runs)
    return runs


def _check_paired(path: Path, reference: str, runs: list[tuple[str, Experiment]]) -> None:
    """Refuse variants whose difference to the reference would not be one of the method."""
    base = next(experiment for variant, experiment in runs if variant == reference)
    faults = []
    for variant, experiment in runs[: len({variant for variant, _ in runs})]:
        for what in ("data", "text", "partition", "clients_per_round"):
            if getattr(experiment, what) != getattr(base, what):
                faults.append(Fault(f"variants.{variant}: {what}", f"differs from {reference!r}'s"))
        if list(experiment.budget.tiers) != list(base.budget.tiers):
            faults.append(Fault(f"variants.{variant}: budget.tiers", "has other names"))
        if experiment.evaluation.test_examples != base.evaluation.test_examples:
            faults.append(Fault(f"variants.{variant}: evaluation.test_examples", "differs"))
    if faults:
        raise ConfigError(str(path), faults)


def _result(variant: str, experiment: Experiment, quiet: bool) -> Result:
    """The result of one run, from its folder if it ended there with the same settings."""
    folder = Path(experiment.simulation.folder) / experiment.name
    config, about = folder / "config.yaml", folder / "environment.json"
    if config.exists() and config.read_text() != to_yaml(experiment):
        raise FedMoEError(
            f"{folder} holds a run with other settings; remove it, or give the comparison another "
            "name"
        )
    if (folder / "ledger.jsonl").exists() and about.exists():
        done = read_result(variant, experiment.seed, folder)
        if done and json.loads(about.read_text()).get("code") != code_digest():
            raise FedMoEError(
                f"{folder} holds a run of other code than is installed now; remove it, or give the "
                "comparison another name"
            )
        if done:
            return done
    if folder.exists():
        shutil.rmtree(folder)  # of an interrupted run of ours, with these very settings
    workers = experiment.simulation.workers
    live = LiveTable(num_rounds=experiment.rounds, workers=workers, quiet=quiet)
    result = read_result(variant, experiment.seed, run(experiment, live))
    assert result, folder
    return result

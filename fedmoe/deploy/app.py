"""The Flower app that an operator submits: the shipped clients/ and server/, one experiment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from fedmoe.budget import Auto
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.words import not_one_of
from fedmoe.deploy.fleet import Fleet
from fedmoe.errors import ConfigError, Fault
from fedmoe.models.build import MINI
from fedmoe.system.shipped import shipped_folder

EXPERIMENT = "configs/experiment.yaml"
TRIES = 3
"""Attempts at a client's task in a round, as in `server/round.py`; each has the plan's time."""
HEADER = """\
# The app of this deployment. The last table is the run config: change it here, or for one run
# with --run-config 'key=value'.
"""


def experiment_for(fleet: Fleet, config: Path, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a config for this fleet: a client per node, each in its tier.

    Raises:
        ConfigError: the config is faulty; no such tier; it cannot run under Flower.
    """
    e = load_experiment(config, overrides)
    tiers = [*e.budget.resolved(1)]
    faults = [
        Fault("--clients", f"{node.name}: {not_one_of(node.tier, tiers)}")
        for node in fleet.nodes
        if node.tier not in tiers
    ]
    if e.aggregation.personal:
        said = f"{e.aggregation.name!r} does not run on separate machines; see `fedmoe run`"
        faults.append(Fault("aggregation.name", said))
    if faults:
        raise ConfigError(str(config), faults)
    every_one = (e.clients_per_round or 0) >= len(fleet.nodes)
    own = ["clients_per_round=null"] if every_one else []
    own += [f"partition.num_clients={len(fleet.nodes)}", "simulation.folder=runs"]
    for tier in e.budget.tiers:
        numbers = [node.number for node in fleet.nodes if node.tier == tier]
        own.append(f"budget.tiers.{tier}.clients={json.dumps(numbers)}")
    for key, value in (("model.path", e.model.path), ("data.path", getattr(e.data, "path", ""))):
        # The server's working folder differs from this command's.
        if value and value != MINI and Path(value).exists():
            own.append(f"{key}={json.dumps(str(Path(value).absolute()))}")
    return load_experiment(config, [*overrides, *own])


def app_files(experiment: Experiment, fleet: Fleet) -> dict[str, bytes]:
    """Return the app's files by path."""
    source = shipped_folder()
    files = {EXPERIMENT: to_yaml(experiment).encode()}
    for path in sorted([*source.glob("clients/**/*.py"), *source.glob("server/**/*.py")]):
        files[path.relative_to(source).as_posix()] = path.read_bytes()
    ours = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    kept = ("name", "version", "description", "license")
    app = ours["tool"]["flwr"]["app"]
    # Last, because its comment says so.
    config = app.pop("config") | {"config": EXPERIMENT, "resume": "auto"}
    app["config"] = config | _run_config(experiment, fleet)
    project = {key: ours["project"][key] for key in kept} | {"dependencies": []}
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    files["pyproject.toml"] = (HEADER + text).encode()
    return files


def _run_config(experiment: Experiment, fleet: Fleet) -> dict[str, str | int | float]:
    """Return what this fleet and the experiment's budget say of the run config."""
    found: dict[str, str | int | float] = {
        "num_nodes": len(fleet.nodes),
        # A node says itself whose data it has: without this, any could take another's tasks.
        "nodes": "; ".join(f"{node.name}={node.number}" for node in fleet.nodes),
    }
    if isinstance(experiment.budget, Auto) and (seconds := experiment.budget.deadline_seconds):
        # The plan's deadline is one client's, from its task's sending to its update's arrival. All
        # are sent at once, each to its own machine, and one whose process dies starts again.
        found |= {"task_seconds": seconds, "round_seconds": TRIES * seconds}
    return found

"""The Flower app that an operator submits: the shipped clients/ and server/, one experiment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from fedmoe.budget import Auto
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.paths import rooted
from fedmoe.config.words import not_one_of
from fedmoe.data import Dataset
from fedmoe.data.partition import Natural
from fedmoe.data.table import Table
from fedmoe.deploy.fleet import Fleet
from fedmoe.errors import ConfigError, Fault
from fedmoe.runs.roster import is_federated
from fedmoe.section import fields
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

    Where the clients' machines have rows of their own, the data are federated: each client trains
    and scores on all of its rows and on no other's, and the server opens none.

    Raises:
        ConfigError: the config is faulty; no such tier; it cannot run under Flower; some clients
            have rows of their own and others none.
    """
    e = load_experiment(config, overrides)
    tiers = [*e.budget.resolved(1)]
    faults = [
        Fault("--clients", f"{node.name}: {not_one_of(node.tier, tiers)}")
        for node in fleet.nodes
        if node.tier not in tiers
    ]
    own_rows = is_federated(e) or any(node.data for node in fleet.nodes)
    if e.aggregation.personal and not own_rows:
        said = f"{e.aggregation.name!r} does not run on separate machines; see `fedmoe run`"
        faults.append(Fault("aggregation.name", said))
    if own_rows and (bare := [node.name for node in fleet.nodes if not node.data]):
        said = f"{bare[0]} has none; where clients hold rows of their own, each needs its path"
        faults.append(Fault("--data", said))
    if faults:
        raise ConfigError(str(config), faults)
    every_one = (e.clients_per_round or 0) >= len(fleet.nodes)
    own = ["clients_per_round=null"] if every_one else []
    own.append("simulation.folder=runs")
    for tier in e.budget.tiers:
        nodes = [node for node in fleet.nodes if node.tier == tier]
        clients = [node.name if own_rows else node.number for node in nodes]
        own.append(f"budget.tiers.{tier}.clients={json.dumps(clients)}")
    if own_rows:
        own.append(f"data={json.dumps(_federated(e.data, fleet))}")
        own.append(f"partition={json.dumps(asdict(Natural()))}")  # which has no meaning there
    else:
        own.append(f"partition.num_clients={len(fleet.nodes)}")
    # The server's working folder differs from this command's.
    return rooted(load_experiment(config, [*overrides, *own]), Path.cwd())


def _federated(data: Dataset, fleet: Fleet) -> dict[str, Any]:
    """Return the section `data` of a fleet whose clients hold their own rows, read as in `data`."""
    if not isinstance(data, Table):
        said = f"{data.name!r} makes its rows itself; use 'files' or 'federated' with --data"
        raise ConfigError("fedmoe deploy", [Fault("data.name", said)])
    kept = {name: getattr(data, name) for name in fields(Table) if name != "name"}
    kept["server_test"] = getattr(data, "server_test", "")
    return {"name": "federated", "clients": [n.name for n in fleet.nodes], **kept}


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
    found: dict[str, str | int | float] = {"num_nodes": len(fleet.nodes)}
    # A node says itself whose data it has: without this, any could take another's tasks.
    named = is_federated(experiment)
    pairs = (f"{node.name}={node.name if named else node.number}" for node in fleet.nodes)
    found["nodes"] = "; ".join(pairs)
    if isinstance(experiment.budget, Auto) and (seconds := experiment.budget.deadline_seconds):
        # The plan's deadline is one client's, from its task's sending to its update's arrival. All
        # are sent at once, each to its own machine, and one whose process dies starts again.
        found |= {"task_seconds": seconds, "round_seconds": TRIES * seconds}
    return found

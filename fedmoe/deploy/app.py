"""The Flower app that an operator submits: the installed clients/ and server/, one experiment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmoe.budget import Auto
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.words import not_one_of
from fedmoe.deploy.fleet import Fleet
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.models.build import MINI

EXPERIMENT = "configs/experiment.yaml"
TRIES = 3
"""Of a client's task in a round, as many as `server/round.py` makes; each has the plan's time."""
PYPROJECT = """\
# The app of this deployment. The last table is the run config: change it here, or for one run
# with --run-config 'key=value'.
[project]
name = "fedmoe"
version = {version}
description = {description}
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = {publisher}
fab-include = {include}

[tool.flwr.app.components]
serverapp = {serverapp}
clientapp = {clientapp}

[tool.flwr.app.config]
{config}
"""


def experiment_for(fleet: Fleet, config: Path, overrides: Sequence[str]) -> Experiment:
    """The experiment of a config for this fleet: as many clients as it has, each in its tier.

    Raises:
        ConfigError: the config is faulty; no such tier; it cannot run under Flower.
    """
    e = load_experiment(config, overrides)
    tiers, faults = [*e.budget.resolved(1)], []
    for node in fleet.nodes:
        if node.tier not in tiers:
            faults.append(Fault("--clients", f"{node.name}: {not_one_of(node.tier, tiers)}"))
    if e.aggregation.asynchronous or e.aggregation.personal:
        faults.append(
            Fault(
                "aggregation.name",
                f"{e.aggregation.name!r} does not run on machines of their own; see `fedmoe run`",
            )
        )
    if faults:
        raise ConfigError(str(config), faults)
    every_one = (e.clients_per_round or 0) >= len(fleet.nodes)
    own = ["clients_per_round=null"] if every_one else []
    own += [f"partition.num_clients={len(fleet.nodes)}", "simulation.folder=runs"]
    for tier in e.budget.tiers:
        numbers = [node.number for node in fleet.nodes if node.tier == tier]
        own.append(f"budget.tiers.{tier}.clients={json.dumps(numbers)}")
    for key, value in (("model.path", e.model.path), ("data.path", getattr(e.data, "path", ""))):
        # The server's working folder is another one than this command's.
        if value and value != MINI and Path(value).exists():
            own.append(f"{key}={json.dumps(str(Path(value).absolute()))}")
    return load_experiment(config, [*overrides, *own])


def app_files(experiment: Experiment, fleet: Fleet) -> dict[str, bytes]:
    """The app's files by path."""
    files = {EXPERIMENT: to_yaml(experiment).encode()}
    for root in (source_folder() / "clients", source_folder() / "server"):
        for path in sorted(root.rglob("*.py")):
            files[f"{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    files["pyproject.toml"] = _pyproject(experiment, fleet).encode()
    return files


def _pyproject(experiment: Experiment, fleet: Fleet) -> str:
    project = _project()
    app = project["tool"]["flwr"]["app"]
    config = (
        app["config"] | {"config": EXPERIMENT, "resume": "auto"} | _run_config(experiment, fleet)
    )
    return (
        PYPROJECT.format(
            version=json.dumps(project["project"]["version"]),
            publisher=json.dumps(app["publisher"]),
            description=json.dumps(project["project"]["description"]),
            include=json.dumps(app["fab-include"]),
            config=_lines(config),
            **{key: json.dumps(value) for key, value in app["components"].items()},
        ).rstrip()
        + "\n"
    )


def _run_config(experiment: Experiment, fleet: Fleet) -> dict[str, str | int | float]:
    """What this fleet and the experiment's budget say of the run config."""
    found: dict[str, str | int | float] = {
        "num_nodes": len(fleet.nodes),
        # A node says itself whose data it holds: without this, any could take another's tasks.
        "nodes": "; ".join(f"{node.name}={node.number}" for node in fleet.nodes),
    }
    if isinstance(experiment.budget, Auto) and (seconds := experiment.budget.deadline_seconds):
        # The plan's deadline is one client's, from its task's sending to its update's arrival. All
        # are sent at once, each to a machine of its own, and one whose process dies begins anew.
        found |= {"task_seconds": seconds, "round_seconds": TRIES * seconds}
    return found


def _lines(table: Mapping[str, str | int | float | bool]) -> str:
    """A flat TOML table; TOML writes text, numbers and truth as JSON does."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())


def source_folder() -> Path:
    """Return the folder of `clients/`, `server/` and pyproject.toml: in a wheel, or a checkout.

    They are read as files and never imported: whatever else is called `server` on this machine
    does not enter a deployment.

    Raises:
        FedMoEError: the installation is incomplete.
    """
    here = Path(__file__).parent
    for folder in (here / "bundle", here.parents[1]):
        if (folder / "pyproject.toml").exists() and (folder / "server/app.py").exists():
            return folder
    raise FedMoEError(f"{here} holds no app to deploy; reinstall fedmoe")


def _project() -> dict:
    """This project's pyproject.toml."""
    return tomllib.loads((source_folder() / "pyproject.toml").read_text(encoding="utf-8"))

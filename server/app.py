"""The Flower ServerApp: `flwr run .` with the run config of `[tool.flwr.app.config]`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from logging import INFO
from pathlib import Path
from typing import cast, get_args

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmoe.config import load_experiment
from fedmoe.config.words import not_one_of
from fedmoe.errors import ConfigError, Fault
from fedmoe.runs.asynchronous import goes_live
from fedmoe.runs.resume import Resume
from fedmoe.runs.roster import is_federated
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.session import run
from fedmoe.runs.workers import Watch
from server.log import LogLines
from server.private import log
from server.settings import read_settings
from server.stream import GridStream
from server.transport import GridTransport

BUNDLE = Path(__file__).parent.parent
"""Relative configs are looked for here: the working folder is the SuperLink's."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names; an error fails the Flower run."""
    torch.set_num_threads(1)  # as on every node: the same bits
    given = context.run_config
    experiment = load_experiment(
        BUNDLE / str(given["config"]), shlex.split(str(given["overrides"]))
    )

    strategy = experiment.aggregation
    if strategy.personal and not is_federated(experiment):
        said = (
            f"{strategy.name!r} is scored with the part that every client keeps to itself, which "
            "takes clients with rows of their own (data.name=federated), or `fedmoe run`"
        )
        raise ConfigError("run config", [Fault("aggregation.name", said)])

    settings, places = read_settings(given), dict[int, str]()

    def make_workers(server: ServerSide, scorer: Scorer, _: Sequence[Watch]) -> GridTransport:
        transport = GridStream if goes_live(experiment) else GridTransport
        return transport(grid, server, scorer, settings, places=places)

    resume = str(given["resume"])
    if resume not in get_args(Resume):
        raise ConfigError("run config", [Fault("resume", not_one_of(resume, get_args(Resume)))])
    clients = Path(__file__).parent.parent / "clients"
    folder = run(
        experiment, LogLines(places), make_workers, cast(Resume, resume), nodes_code=clients
    )
    log(INFO, "report: %s", (folder / "report.html").absolute())

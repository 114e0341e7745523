"""The model and data of a run, built once per process and kept between its tasks."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from clients.budget import OwnBudget, planned_here
from clients.worker_frames import Order
from fedmoe.budget import Auto
from fedmoe.config import load_experiment
from fedmoe.errors import FedMoEError
from fedmoe.prepare import prepare
from fedmoe.prepared import Prepared
from fedmoe.wire import Message, sealed


def carry_out(order: Order, buffer: memoryview) -> Message:
    """The packed update of the task in `order` and `buffer`.

    Raises:
        FedMoEError: the task is damaged or not for this node, or the run cannot be prepared here.
    """
    prepared, own_budget = resident(order.experiment, order.overrides)
    task = prepared.read_task(Message(order.scalars, buffer, order.crc32))
    if order.own and task.client not in order.own:
        raise FedMoEError(f"client {task.client} is not one of this node's: {order.own}")
    folder = Path(order.state) if order.state else None
    here = replace(prepared, state_folder=folder)
    return sealed(own_budget.answer(here, task) if own_budget else here.answer(task))


@lru_cache(maxsize=1)
def resident(experiment: str, overrides: str) -> tuple[Prepared, OwnBudget | None]:
    """The prepared run of a resolved experiment (YAML), with this machine's dotted overrides.

    And what plans for this machine, where the run has an automatic budget and no devices.

    A process that carries out many tasks builds it once: a Ray actor, or a SuperNode's worker.

    Raises:
        FedMoEError: the experiment is faulty, or its model or data are not to be had here.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(experiment, encoding="utf-8")
        asked = load_experiment(path, shlex.split(overrides))
    here = planned_here(asked)
    own = OwnBudget(asked.budget) if here is not asked and isinstance(asked.budget, Auto) else None
    return prepare(here, on_nodes=True), own

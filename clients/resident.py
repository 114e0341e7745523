"""The model and data of a run, prepared once per process and kept between its tasks."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from clients.masks import answer_step, masked_side
from clients.own_rows import REPORTED, rows_here
from clients.worker_frames import Order
from fedmoe.budget import Auto
from fedmoe.config import Experiment, load_experiment
from fedmoe.data.federated import Federated
from fedmoe.errors import FedMoEError
from fedmoe.messages.codec import sealed
from fedmoe.messages.records import Message
from fedmoe.privacy.masks.wire import read_request
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.node_budget import OwnBudget, planned_here
from fedmoe.runs.own_scores import score_own
from fedmoe.runs.prepare import prepare
from fedmoe.section import Imports

LOG = logging.getLogger(__name__)
OTHER_ROWS = (
    "this node's rows differ from the server's (digest {here}, the server's {there}): `partition` "
    "shares out one data set, which every node and the server must hold whole. For rows that stay "
    "with their owners use data.name=federated, and set `data` in each node's config"
)


def carry_out(order: Order, buffer: memoryview) -> Message:
    """Return the packed update of the task in `order` and `buffer`.

    Raises:
        FedMoEError: the task is damaged or not for this node, or the run cannot be prepared here.
    """
    # As on every node and in every worker: sums of products differ with the number of threads.
    torch.set_num_threads(1)
    if order.masks and read_request(order.masks).step != "mask":
        asked = experiment_of(order.experiment, order.overrides, tuple(order.allow))
        return answer_step(order, asked)
    report = tuple(order.report)
    own = order.data, report, "" if "name" in report else order.home
    run = resident(order.experiment, order.overrides, tuple(order.allow), *own)
    if order.digest and order.digest != run.digest:
        raise FedMoEError(OTHER_ROWS.format(here=run.digest, there=order.digest))
    client, own_budget = run.client, run.own_budget
    task = client.read_task(Message(order.scalars, buffer, order.checksum))
    if order.own and task.client not in order.own:
        raise FedMoEError(f"client {task.client} is not one of this node's, {order.own}")
    folder = Path(order.state) if order.state else None
    here = replace(client, state_folder=folder, reports=frozenset(order.report))
    if order.split:
        return sealed(score_own(here, Message(order.scalars, buffer, order.checksum), order.split))
    here = masked_side(order, here)
    if own_budget:
        message = own_budget.answer(here, task, order.deadline_seconds, order.fewer)
    else:
        fewer = run.fewer[task.client] = max(order.fewer, run.fewer.get(task.client, 0))
        message = here.answer(replace(task, top_k=max(1, task.top_k - fewer)))
    return sealed(replace(message, scalars="{}") if order.masks else message)


@dataclass(frozen=True, eq=False)
class Resident:
    """The client side of a run in this process."""

    client: ClientSide
    digest: str
    """Of all rows, where one data set is shared out."""
    own_budget: OwnBudget | None
    """Plans for this machine, if the run has an automatic budget and no devices."""
    fewer: dict[int, int] = field(default_factory=dict)
    """By client, without a plan: experts to leave out of its tasks (see `Order`), so that not each
    of its rounds costs a worker."""


@lru_cache(maxsize=1)
def resident(
    experiment: str,
    overrides: str,
    allow: tuple[str, ...] = (),
    data: str = "",
    report: tuple[str, ...] = REPORTED,
    state: str = "",
) -> Resident:
    """Prepare the client side of a resolved experiment (YAML), with this machine's overrides.

    A process that carries out many tasks does so once: a Ray actor, or a SuperNode's worker. Of
    the modules that the experiment names, those that `allow` lists are imported, and entry points
    of installed packages.

    Raises:
        FedMoEError: the experiment is faulty, or its model or data cannot be loaded here.
    """
    asked = experiment_of(experiment, overrides, allow)
    if isinstance(asked.data, Federated):
        asked = replace(asked, data=rows_here(asked.data, data, report, state))
    here = planned_here(asked)
    budget = asked.budget
    own_budget = OwnBudget(budget) if here is not asked and isinstance(budget, Auto) else None
    prepared = prepare(here, on_nodes=True)
    for note in prepared.setup.notes:
        LOG.info(note)
    return Resident(prepared.client, prepared.server.facts.sha256, own_budget)


@lru_cache(maxsize=1)
def experiment_of(experiment: str, overrides: str, allow: tuple[str, ...]) -> Experiment:
    """Return a resolved experiment (YAML) with this machine's overrides; see `resident`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(experiment, encoding="utf-8")
        return load_experiment(path, shlex.split(overrides), Imports(allow))

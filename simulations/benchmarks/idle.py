"""Clients that train nothing: what a round costs beside its training.

The adapter has 6,144 logical tensors: A and B of two weights of every expert of 24 layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.budget import Tier
from fedmoe.config import Experiment
from fedmoe.messages.records import Task, Update
from fedmoe.messages.rows import RowCounts
from fedmoe.models.families import FAMILIES, Family
from fedmoe.rounds import Member, ServerState, Transport, run_rounds
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.data import DataFacts
from fedmoe.runs.prepare import Prepared
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.setup import Setup
from fedmoe.training.settings import Training

LAYERS, EXPERTS, RANK, WIDTH, TOP_K = 24, 64, 8, 32, 8
LOGICAL_TENSORS = 4 * LAYERS * EXPERTS


def update_of(task: Task, delta: Adapter, examples: int = 1) -> Update:
    """Return a valid update that answers `task`: every expert got the same tokens."""
    layout = delta.layout
    return Update(
        round=task.round,
        client=task.client,
        tier=task.tier,
        top_k=task.top_k,
        rescaler=task.rescaler,
        delta=delta,
        counts=torch.full((layout.num_layers, layout.num_experts), task.top_k),
        examples=examples,
        tokens=layout.num_experts,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=1e-9,
        peak_bytes=1,
    )


@dataclass(frozen=True, eq=False)
class IdleClients(ClientSide):
    """Clients that send back what they were sent, as if they had learned it."""

    def train(self, task: Task) -> Update:
        return update_of(task, task.adapter)


@dataclass(frozen=True)
class Shape:
    """The parts of a model that such a run looks at."""

    layout: Layout
    full_top_k: int = TOP_K
    family: Family = FAMILIES["olmoe"]
    stacks: tuple[str, ...] = ("decoder",) * LAYERS


def idle_run(num_clients: int, width: int = WIDTH) -> Prepared:
    """Return both sides of a run with `num_clients` such clients."""
    shape, names = (EXPERTS, RANK, width), ("a.A", "a.B", "b.A", "b.B")
    tensors = [(f"{i}.{name}", shape, i) for i in range(LAYERS) for name in names]
    layout = Layout.of([*tensors], LAYERS, EXPERTS, RANK, 16.0)
    experiment = Experiment(training=Training(steps=1))
    initial = Adapter(layout, torch.zeros(layout.size))
    model: Any = Shape(layout)
    tiers = {"all": Tier(top_k=TOP_K)}
    setup = Setup(experiment, model, None, tiers, experiment.training, initial, base="")
    members = tuple(Member(client, "all", TOP_K) for client in range(num_clients))
    server = ServerSide(setup, members, DataFacts((), {}, "", RowCounts(), {}), experiment)
    return Prepared(server, Scorer(IdleClients(setup, {}), {}))


def one_round(run: Prepared, transport: Transport, at_a_time: int | None = None) -> ServerState:
    """Carry out one round with all clients, or with as many as `at_a_time`."""
    members = run.server.members
    return run_rounds(
        ServerState(0, run.setup.initial, {"all": torch.ones(LAYERS)}),
        members,
        Flame(),
        transport,
        [],
        num_rounds=1,
        clients_per_round=at_a_time or len(members),
        seed=0,
    )

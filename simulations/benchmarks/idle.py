"""Clients that train nothing: what a round costs beside its training.

The adapter has 6,144 logical tensors: A and B of two weights of every expert of 24 layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment
from fedmoe.messages.records import Task, Update
from fedmoe.models.families import FAMILIES, Family
from fedmoe.rounds import Member, ServerState, Transport, run_rounds
from fedmoe.runs.prepare import Prepared

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
class Idle(Prepared):
    """A run whose clients send back what they were sent, as if they had learned it."""

    def train(self, task: Task) -> Update:
        return update_of(task, task.adapter)


@dataclass(frozen=True)
class Shape:
    """The parts of a model that such a run looks at."""

    layout: Layout
    full_top_k: int = TOP_K
    family: Family = FAMILIES["olmoe"]
    stacks: tuple[str, ...] = ()


def idle_run(num_clients: int, width: int = WIDTH) -> Idle:
    """Return a run with `num_clients` such clients."""
    shape, names = (EXPERTS, RANK, width), ("a.A", "a.B", "b.A", "b.B")
    layout = Layout.of(
        [(f"{i}.{name}", shape, i) for i in range(LAYERS) for name in names],
        LAYERS,
        EXPERTS,
        RANK,
        16.0,
    )
    experiment = Experiment(budget=Levels(tiers={"all": Tier(top_k=TOP_K)}))
    model: Any = Shape(layout)
    return Idle(
        experiment=experiment,
        model=model,
        tokenizer=None,
        rows=(),
        members=tuple(Member(client, "all", TOP_K) for client in range(num_clients)),
        tiers={"all": TOP_K},
        ranks={"all": layout.rank},
        sets={},
        manifest={},
        training=experiment.training,
        initial=Adapter(layout, torch.zeros(layout.size)),
        base="",
    )


def first_state(run: Prepared) -> ServerState:
    """Return the state that such a run begins with."""
    return ServerState(0, run.initial, {"all": torch.ones(LAYERS)})


def one_round(run: Prepared, transport: Transport, at_a_time: int | None = None) -> ServerState:
    """Carry out one round with all clients, or with as many as `at_a_time`."""
    return run_rounds(
        first_state(run),
        run.members,
        Flame(),
        transport,
        [],
        num_rounds=1,
        clients_per_round=at_a_time or len(run.members),
        seed=0,
    )

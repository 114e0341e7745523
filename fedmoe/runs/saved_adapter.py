"""The adapter in a file that a run wrote, and as the run's model computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import CheckpointError, FedMoEError, no_common_model
from fedmoe.messages.records import Task
from fedmoe.runs.round_files import read_tensors

if TYPE_CHECKING:
    from fedmoe.config import Experiment


def read_adapter(path: Path, layout: Layout) -> tuple[Adapter, dict[str, Tensor], int]:
    """Return the adapter, the tiers' rescalers and the round in a file written by a run.

    Raises:
        CheckpointError: the file is damaged, or was written for another layout.
    """
    tensors, facts = read_tensors(path)
    if facts.get("layout") != layout.digest:
        raise CheckpointError(f"{path} was written for another model, rank or alpha")
    flat = torch.zeros(layout.size)
    for entry, view in layout.views(flat):
        view.copy_(tensors.pop(entry.name))
    rescalers = {name.removeprefix("rescaler."): factors for name, factors in tensors.items()}
    return Adapter(layout, flat), rescalers, int(facts["round"])


def deployed(
    experiment: Experiment,
    initial: Adapter,
    state: Adapter,
    round: int,
    full_top_k: int,
    tier: str | None = None,
) -> Adapter:
    """Return the adapter that a run's model computes with at a tier, by default at full rank.

    Args:
        initial: the adapter that the run's clients began with.
        state: the global state, as the strategy keeps it.

    Raises:
        FedMoEError: clients keep a part to themselves: there is no common model.
    """
    strategy = experiment.aggregation
    if strategy.personal:
        raise FedMoEError(no_common_model(strategy.name))
    tiers = experiment.budget.resolved(full_top_k)
    rank = tiers[tier].rank if tier in tiers else None
    plain = experiment.adapter.at_rank(initial.layout, rank)
    top_k = tiers[tier].top_k if tier in tiers else full_top_k
    sent = strategy.send(state, plain)
    task = Task(round + 1, 0, tier or "", top_k, torch.ones(plain.num_layers), sent)
    return strategy.local(task, strategy.layouts(plain, round + 1), initial).start

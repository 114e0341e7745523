"""Which clients of a round train in one pass: it follows from the tasks and the settings alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmoe.messages.records import Task
    from fedmoe.runs.setup import Setup


def passes(setup: Setup, tasks: Sequence[Task]) -> Iterator[list[int]]:
    """Yield the places of tasks that share a pass, in the order of each one's first.

    They are at most `simulation.clients_per_pass`, of tiers that compute in the same way.
    """
    most = setup.experiment.simulation.clients_per_pass
    kinds = {task.tier: _kind(setup, task) for task in tasks} if most > 1 else {}
    left = dict(enumerate(tasks))
    while left:
        first = next(iter(left))
        same = [first]
        if most > 1:
            kind = kinds[tasks[first].tier]
            same = [i for i, task in left.items() if kinds[task.tier] == kind][:most]
        for i in same:
            del left[i]
        yield same


def _kind(setup: Setup, task: Task) -> Hashable:
    """Return what the tiers of a pass share; a client with a subset of the experts shares none."""
    name, tier = task.tier, setup.tier(task.tier)
    if setup.experiment.rescaling.reweighs:
        return name  # routers then choose K, of which k are left
    layout = setup.layouts(name, task.round).model.digest
    return layout, tier.frozen, setup.training_of(name).recompute

"""Which clients of a round train in one pass: it follows from the tasks and the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmoe.messages.records import Task
    from fedmoe.runs.setup import Setup


def passes(setup: Setup, tasks: Sequence[Task]) -> Iterator[list[int]]:
    """Yield the places of tasks that share a pass, in the order of each one's first.

    They are of one tier, and at most `simulation.clients_per_pass`; a client with a subset of the
    experts has a pass to itself.
    """
    largest = setup.experiment.simulation.clients_per_pass
    left = dict(enumerate(tasks))
    while left:
        first = next(iter(left.values()))
        most = 1 if setup.subset(first.tier) else largest
        same = [i for i, task in left.items() if task.tier == first.tier][:most]
        for i in same:
            del left[i]
        yield same

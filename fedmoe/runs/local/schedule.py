"""The order in which clients train: longest first, by expected times that are learned on the way.

Results do not depend on it: updates are summed in the order of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedmoe.messages.records import Task, Update
from fedmoe.runs.costs import expected_flops, tier_costs
from fedmoe.runs.workers import Schedule

if TYPE_CHECKING:
    from fedmoe.messages.records import Failure
    from fedmoe.runs.server_side import ServerSide

Work = Callable[[Task], float]
"""Returns the FLOPs that a task is expected to take."""


def longest_first(expected: Sequence[float]) -> list[int]:
    r"""Return the numbers of the jobs, longest first; equal ones in their order.

    If the expected times are right, m workers that take jobs in this order end within
    $4/3 - 1/(3m)$ of the best makespan.

    Source: the LPT rule, Graham 1969 (SIAM J. Appl. Math. 17(2), theorem 2).
    """
    return sorted(range(len(expected)), key=lambda i: (-expected[i], i))


def expected_work(server: ServerSide) -> Work:
    """Return a function from a task to its expected FLOPs."""
    costs = tier_costs(server)
    return lambda task: expected_flops(server, task.client, task.tier, costs[task.tier])


class TimeModel:
    """Expected seconds of a client's round, learned from the rounds seen so far.

    A client seen before takes its own mean. For another one its FLOPs are multiplied by the mean
    seconds per FLOP; before anything is seen, by 1: only the order matters.
    """

    def __init__(self) -> None:
        self.clients: dict[int, tuple[int, float]] = {}
        """Rounds seen, and their seconds in all."""
        self.flops = self.seconds = 0.0

    def learn(self, client: int, flops: float, seconds: float) -> None:
        """Take note of one round of a client."""
        rounds, before = self.clients.get(client, (0, 0.0))
        self.clients[client] = rounds + 1, before + seconds
        self.flops, self.seconds = self.flops + flops, self.seconds + seconds

    def expected(self, client: int, flops: float) -> float:
        """Return seconds, or FLOPs as long as nothing is known."""
        if client in self.clients:
            rounds, seconds = self.clients[client]
            return seconds / rounds
        return flops * self.seconds / self.flops if self.flops and self.seconds else flops


class Tally:
    """Sums over the clients of one round."""

    def __init__(self) -> None:
        self.busy_seconds = self.longest_seconds = 0.0

    def add(self, answer: Update | Failure) -> None:
        """Count an answer; one that failed has no seconds."""
        if isinstance(answer, Update):
            self.busy_seconds += answer.seconds
            self.longest_seconds = max(self.longest_seconds, answer.seconds)

    def schedule(self, round: int, workers: int, makespan_seconds: float) -> Schedule:
        """Return the schedule of the whole round."""
        return Schedule(round, workers, self.busy_seconds, self.longest_seconds, makespan_seconds)

"""Which client trains first: the one expected to take longest, by a time model learned on the way.

Nothing here changes a bit of a result: updates are summed by client id, whoever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedmoe.messages.codec import Failure, Task, Update
from fedmoe.runs.costs import expected_flops, tier_costs
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.workers import Schedule

Work = Callable[[Task], float]
"""The FLOPs that a task is expected to take."""


def longest_first(expected: Sequence[float]) -> list[int]:
    r"""The numbers of the jobs, longest first; equal ones in their order.

    Workers that take jobs in this order end within $4/3 - 1/(3m)$ of the best makespan on m
    workers, where the expected times are right.

    Source: the LPT rule, Graham 1969 (SIAM J. Appl. Math. 17(2), theorem 2).
    """
    return sorted(range(len(expected)), key=lambda i: (-expected[i], i))


def expected_work(server: ServerSide) -> Work:
    """A function from a task to its expected FLOPs."""
    costs = tier_costs(server)
    return lambda task: expected_flops(server, task.client, task.tier, costs[task.tier])


class TimeModel:
    r"""Expected seconds of a client's round, learned from the rounds seen so far.

    A client seen before takes its own mean. The others take $a + b F$, the least-squares line
    through all rounds seen (F: FLOPs); through the origin where that line has a negative part or
    only one F was seen. Before anything is seen, F itself: the order is all that matters.
    """

    def __init__(self) -> None:
        self.clients: dict[int, tuple[int, float]] = {}
        """Rounds seen, and their mean seconds."""
        self.sums = [0.0] * 5
        """Of 1, F, seconds, F squared, F seconds."""

    def learn(self, client: int, flops: float, seconds: float) -> None:
        """Take note of one round of a client."""
        n, mean = self.clients.get(client, (0, 0.0))
        self.clients[client] = n + 1, mean + (seconds - mean) / (n + 1)
        new = (1.0, flops, seconds, flops * flops, flops * seconds)
        self.sums = [old + x for old, x in zip(self.sums, new, strict=True)]

    def expected(self, client: int, flops: float) -> float:
        """Seconds, or only FLOPs as long as nothing is known."""
        if client in self.clients:
            return self.clients[client][1]
        a, b = self.line()
        return a + b * flops

    def line(self) -> tuple[float, float]:
        """The a and b of the line, neither of them negative."""
        n, f, s, ff, fs = self.sums
        spread = n * ff - f * f
        if spread > 1e-9 * n * ff:
            b = (n * fs - f * s) / spread
            a = (s - b * f) / n
            if a >= 0 and b >= 0:
                return a, b
        return (0.0, s / f) if f and s else (0.0, 1.0)


class Tally:
    """Adds up the clients of one round."""

    def __init__(self) -> None:
        self.busy_seconds = self.longest_seconds = 0.0

    def add(self, answer: Update | Failure) -> None:
        """Count an answer; one that failed has no seconds."""
        if isinstance(answer, Update):
            self.busy_seconds += answer.seconds
            self.longest_seconds = max(self.longest_seconds, answer.seconds)

    def schedule(self, round: int, workers: int, makespan_seconds: float) -> Schedule:
        """The round as a whole."""
        return Schedule(round, workers, self.busy_seconds, self.longest_seconds, makespan_seconds)

"""The only round loop: plan, train through a transport, combine, notify the observers.

The loop knows tasks and updates. The transport decides whether clients run in this process, on a
pool of workers or behind Flower; the results are bitwise identical, because updates are combined
in the order of client ids and all randomness comes from `(seed, round, client)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, cut, place
from fedmoe.aggregation.mean import again
from fedmoe.aggregation.robust.judgement import Judgement
from fedmoe.aggregation.robust.rule import PLAIN, RobustRule
from fedmoe.aggregation.server_optimizer import NoOptimizer, ServerOptimizer
from fedmoe.aggregation.strategy import Aggregator
from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.seeds import numpy_rng

NO_OPTIMIZER = NoOptimizer()

Plan = Callable[["ServerState"], "list[Task]"]
"""Returns the tasks whose updates make the next state."""
Send = Callable[[Adapter, "Member"], Adapter]
"""Returns the part of the global state that a member is sent."""

Choose = Callable[[Sequence["Member"]], "Sequence[Member]"]
"""Returns those of the reachable members that take part in a round, in any order."""

Transport = Callable[[Sequence[Task]], Iterator[Update | Failure]]
"""Carries out tasks and yields one answer per task, in the order of the tasks."""


@dataclass(frozen=True)
class Member:
    """A client as the server knows it: its tier, its budget, and how often it can be reached."""

    client: int
    tier: str
    top_k: int
    availability: float = 1.0
    """Probability that it can be reached in a round."""
    name: str = ""
    """Its id, where clients are known by name."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """Everything that the next round depends on."""

    round: int
    """Rounds finished."""
    adapter: Adapter
    rescalers: dict[str, Tensor]
    """Per tier, float32 (layers,)."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """The server optimiser's memory, float64 (parameters,) by name."""
    centre: dict[str, Tensor] = field(default_factory=dict)
    """A robust rule's memory, by name."""


Root = Callable[[ServerState], Update]
"""Trains a round on rows of the server's own."""


class Observer:
    """Is notified of each round and cannot change it; a subclass overrides what it needs."""

    def planned(self, tasks: Sequence[Task]) -> None:
        """Note the tasks of a round that begins; none if no client can be reached."""

    def answered(self, task: Task, answer: Update | Failure) -> None:
        """Note the answer to a task, in the order of the tasks."""

    def judged(self, number: int, judgement: Judgement) -> None:
        """Note what the robust rule did in a round, before it is finished."""

    def finished(self, state: ServerState) -> None:
        """Note the state after a round."""


def whole_state(state: Adapter, member: Member) -> Adapter:
    """Return the global state as it is: every member is sent all of it."""
    return state


def plan_round(
    state: ServerState,
    members: Sequence[Member],
    clients_per_round: int,
    seed: int,
    send: Send = whole_state,
    choose: Choose | None = None,
) -> list[Task]:
    """Return the next round's tasks by client id.

    `(seed, round)` alone decides who takes part, unless `choose` does.
    """
    number = state.round + 1
    # Drawn for all, from a separate stream: if everyone is reachable the samples do not change.
    draws = numpy_rng(seed, "round", number, "available").random(len(members))
    members = [m for m, u in zip(members, draws, strict=True) if u < m.availability]
    if not members:
        return []
    if choose is None:
        rng = numpy_rng(seed, "round", number, "sample")
        chosen = rng.choice(len(members), size=min(clients_per_round, len(members)), replace=False)
        members = [members[i] for i in chosen]
    else:
        members = [*choose(members)]
    taking_part = sorted(members, key=lambda m: m.client)
    # One object for all clients of a tier: transports serialise it once.
    sent = {m.tier: m for m in taking_part}
    adapters = {tier: send(state.adapter, member) for tier, member in sent.items()}
    return [
        Task(
            round=number,
            client=m.client,
            tier=m.tier,
            top_k=m.top_k,
            rescaler=state.rescalers[m.tier],
            adapter=adapters[m.tier],
            name=m.name,
        )
        for m in taking_part
    ]


def finish_round(
    state: ServerState,
    strategy: Aggregator,
    updates: Iterable[Update],
    optimizer: ServerOptimizer = NO_OPTIMIZER,
    num_clients: int = 0,
    robust: RobustRule = PLAIN,
    root: Root | None = None,
    judged: Callable[[Judgement], None] = lambda judgement: None,
) -> ServerState:
    """Return the state after the updates of one round, which are taken one at a time.

    A round without updates keeps the adapter, unless the strategy `moves_alone`. A `robust` rule
    keeps all updates until it has judged, and says what it did; `root` trains the server's own
    update, if it wants one.
    """
    rescalers = RescalerMean(state.rescalers, strategy, robust)
    stream = rescalers.watch(updates)
    if not (first := list(islice(stream, 1))) and not strategy.moves_alone:
        return replace(state, round=state.round + 1)
    stream = again(first, stream)
    own = root(state) if root else None
    outcome = robust.combine(strategy, state.adapter, stream, num_clients, state.centre, own)
    if outcome.judgement:
        judged(outcome.judgement)
    proposed = outcome.state
    adapter, memory = proposed, state.memory
    if not isinstance(optimizer, NoOptimizer):
        adapter, memory = strategy.step(optimizer, state.adapter, proposed, state.memory)
    if (kept := strategy.extra_state(proposed.layout)) is not None:
        place(cut(proposed, kept), adapter)
    return ServerState(state.round + 1, adapter, rescalers.mean(), memory, outcome.centre)


def run_rounds(
    state: ServerState,
    members: Sequence[Member],
    strategy: Aggregator,
    transport: Transport,
    observers: Sequence[Observer],
    *,
    num_rounds: int,
    clients_per_round: int,
    seed: int,
    optimizer: ServerOptimizer = NO_OPTIMIZER,
    send: Send = whole_state,
    plan: Plan | None = None,
    quorum: float = 0.0,
    updates_per_step: int | None = None,
    stop: Callable[[], str] = lambda: "",
    shown: Callable[[Update], Update] = lambda update: update,
    robust: RobustRule = PLAIN,
    root: Root | None = None,
) -> ServerState:
    """Run the rounds that are left, as long as `stop` gives no reason, and return the last state.

    A round with fewer updates than `quorum`, a share of its tasks, is discarded: no observer sees
    its state, and a resumed run does it again. With `updates_per_step` it is a share of these: an
    asynchronous server replaces a client that fails. Observers see of one what `shown` leaves.

    Raises:
        FedMoEError: every client of a round failed, or too many; the message gives the first
            reason.
    """
    while state.round < num_rounds and not stop():
        tasks = plan(state) if plan else plan_round(state, members, clients_per_round, seed, send)
        number = state.round + 1
        for observer in observers:
            observer.planned(tasks)
        failures: list[Failure] = []
        heard = _heard(tasks, transport(tasks), observers, failures, shown)
        updates = (strategy.discount(u, number - u.round) for u in heard)
        told: list[Judgement] = []
        args = updates, optimizer, len(members), robust, root, told.append
        state = finish_round(state, strategy, *args)
        if tasks and len(failures) == len(tasks):
            raise FedMoEError(
                f"round {number}: every client failed. The first reason: {failures[0].reason}"
            )
        check_quorum(number, len(tasks), failures, quorum, updates_per_step)
        for observer in observers:
            for judgement in told:
                observer.judged(number, judgement)
            observer.finished(state)
    return state


def check_quorum(
    number: int,
    num_tasks: int,
    failures: Sequence[Failure],
    quorum: float,
    num_expected: int | None = None,
) -> None:
    """Refuse a round in which fewer than `quorum * num_expected` tasks, rounded up, gave an update.

    Updates of all tasks are expected, unless a number is given.

    >>> check_quorum(3, 4, [Failure(3, 0, "no memory")], quorum=0.75)
    """
    expected = num_tasks if num_expected is None else num_expected
    least = math.ceil(round(quorum * expected, 9))  # .7 * 10 is a little over 7
    arrived = num_tasks - len(failures)
    if arrived < least:
        reason = failures[0].reason if failures else "their nodes are not there"
        raise FedMoEError(
            f"round {number}: {arrived} of {num_tasks} clients sent an update, and quorum "
            f"{quorum:g} needs {least}. Round discarded. Resume with `--resume auto` once more "
            f"clients are back, or lower `quorum`. The first reason: {reason}"
        )


def _heard(
    tasks: Sequence[Task],
    answers: Iterator[Update | Failure],
    observers: Sequence[Observer],
    failures: list[Failure],
    shown: Callable[[Update], Update],
) -> Iterator[Update]:
    """Pass updates on, show every answer to the observers, and collect the failures."""
    for task, answer in zip(tasks, answers, strict=True):
        assert answer.client == task.client, (answer.client, task.client)
        seen = answer if isinstance(answer, Failure) else shown(answer)
        for observer in observers:
            observer.answered(task, seen)
        if isinstance(answer, Failure):
            failures.append(answer)
        else:
            yield answer


class RescalerMean:
    """The mean of learned rescalers within each tier, by size, over a stream of updates.

    Sizes are the strategy's, and the robust rule lowers them as for the adapter.
    """

    def __init__(self, old: dict[str, Tensor], strategy: Aggregator, robust: RobustRule) -> None:
        self.old, self.robust = old, robust
        self.size: Callable[[Update], float] = getattr(strategy, "size", lambda u: u.examples)
        self.moves: dict[str, list[Tensor]] = {tier: [] for tier in old}
        self.sizes: dict[str, list[float]] = {tier: [] for tier in old}

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Pass updates on, and keep their rescalers, a number for each layer."""
        for update in updates:
            moved = (update.rescaler - self.old[update.tier]).double()
            self.moves[update.tier].append(moved)
            self.sizes[update.tier].append(self.size(update))
            yield update

    def mean(self) -> dict[str, Tensor]:
        """Return the tiers' new factors; a tier without clients in the round keeps its factors."""
        return {tier: self._mean(tier) for tier in self.old}

    def _mean(self, tier: str) -> Tensor:
        sizes = torch.tensor(self.sizes[tier], dtype=torch.float64)
        if not sizes.any():
            return self.old[tier]
        sizes = sizes * self.robust.fair(sizes)
        total = sum(m * n for m, n in zip(self.moves[tier], sizes.tolist(), strict=True))
        return (self.old[tier].double() + total / sizes.sum()).float()

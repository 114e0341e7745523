"""Masked sums in one process: the protocol as on nodes, played around any transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.collector import Collector, neighbours_of
from fedmoe.privacy.masks.party import Party
from fedmoe.privacy.vector import Vector, stripped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from fedmoe.adapter import Adapter, Layout
    from fedmoe.aggregation.mean import Mean
    from fedmoe.messages.records import Task, Update
    from fedmoe.privacy.private_mean import PrivateMean
    from fedmoe.runs.server_side import ServerSide

MOST_TOKENS = 2**40
"""Tokens of one client's round where its own local step gives no other bound."""


@dataclass
class MaskedMean:
    """Takes a strategy's place in the round loop, and a transport's: it sees sums alone."""

    server: ServerSide
    inner: Callable[[Sequence[Task]], Iterator[Update | Failure]]
    """Has the clients train; what is done with their updates here happens on nodes elsewhere."""
    private: PrivateMean | None = None
    report: dict[str, Any] = field(default_factory=dict)
    counts: np.ndarray | None = None
    """int64 (layers, experts): the last round's."""
    _round: tuple[Vector, Collector, dict[int, Party]] | None = None

    @property
    def strategy(self) -> Mean:
        """Return the strategy whose sums are masked."""
        return self.server.setup.experiment.aggregation

    @property
    def moves_alone(self) -> bool:
        """Return whether a round without updates moves the state."""
        return False

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order, of which masks leave only that it is there."""
        if not tasks:
            return
        vector = vector_of(self.server, tasks, self.private)
        collector, parties = meet(self.server, tasks, vector.length)
        self._round = vector, collector, parties
        for task, answer in zip(tasks, self.inner(tasks), strict=True):
            if isinstance(answer, Failure):
                yield answer
                continue
            party = parties[task.client]
            try:
                sealed = collector.sealed_for(task.client)
                collector.add(task.client, party.mask(vector.of(answer), sealed))
            except FedMoEError as error:
                yield Failure(task.round, task.client, str(error), "masks")
                continue
            yield replace(stripped(answer), num_bytes=8 * vector.length)

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """Return the next state, once every update has been masked.

        Raises:
            AggregationError: too few clients stayed.
            WireError: the same, as the clients say it.
        """
        number = sum(1 for _ in updates)
        assert self._round is not None
        vector, collector, parties = self._round
        there = list(collector.arrived)
        collector.reveals = {client: parties[client].reveal(there) for client in there}
        total = collector.unmasked()
        self.counts = vector.counts(total)
        state, self.report = vector.next_state(adapter, total, number)
        return state

    def extra_state(self, state: Layout) -> Layout | None:
        """Return the strategy's own."""
        return self.strategy.extra_state(state)

    def discount(self, update: Update, staleness: int) -> Update:
        """Return the update: there are no late ones."""
        return update

    def step(self, *arguments: Any) -> Any:
        """Return the strategy's step: it sees the sums' mean alone."""
        return self.strategy.step(*arguments)


def meet(
    server: ServerSide, tasks: Sequence[Task], length: int
) -> tuple[Collector, dict[int, Party]]:
    """Return a round's collector and its parties, who have shared their secrets."""
    settings = server.setup.experiment.secure_aggregation
    clients = sorted(task.client for task in tasks)
    if len(clients) < 3:
        raise FedMoEError(
            f"secure_aggregation: {len(clients)} clients take part in round {tasks[0].round}; with "
            "fewer than 3 a sum gives single clients away. Raise clients_per_round"
        )
    number = len(clients) - 1 if settings.neighbours is None else settings.neighbours
    order = SystemRandom().sample(range(len(clients)), len(clients))
    neighbours = neighbours_of(clients, number, order)
    about = f"{server.run_id}|{tasks[0].round}".encode()
    threshold = settings.threshold_of(min(map(len, neighbours.values())))
    collector = Collector(about, neighbours, threshold, length)
    parties = {client: Party(about, client, threshold) for client in clients}
    collector.adverts = {client: party.advertise() for client, party in parties.items()}
    collector.sealed = {
        client: party.share(collector.adverts_for(client)) for client, party in parties.items()
    }
    return collector, parties


def vector_of(
    server: ServerSide, tasks: Sequence[Task], private: PrivateMean | None = None
) -> Vector:
    """Return what the vectors of a round are made of: it follows from the experiment alone."""
    e, setup = server.setup.experiment, server.setup
    task = tasks[0]
    limits = [server.limits(t, e.admission.most_examples) for t in tasks]
    most_tokens = int(min(max(limit.tokens for limit in limits), MOST_TOKENS))
    sizes = {"uniform": 1, "examples": e.admission.most_examples, "tokens": most_tokens}
    survivors = e.secure_aggregation.threshold_of(max(2, len(tasks) - 1))
    return Vector(
        e.aggregation,
        setup.layouts(task.tier, task.round).update,
        len(tasks),
        max(limit.delta for limit in limits),
        float(sizes[e.aggregation.weighting]),
        most_tokens,
        private,
        1 / survivors,
    )

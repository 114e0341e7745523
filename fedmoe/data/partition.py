"""Partitions: which client holds which training examples."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.section import Component, Open, section
from fedmoe.seeds import numpy_rng

NumClients = Annotated[int, Field(ge=1)]
Concentration = Annotated[float, Field(gt=0)]


class Partition(Component):
    """Base of partitions, which deal out a training set by its labels.

    Example:
        >>> class Halves(Partition):
        ...     num_clients = 2
        ...     def split(self, labels, rng):
        ...         return np.array_split(np.arange(len(labels)), 2)
        >>> [part.tolist() for part in partition(Halves(), ["a", "b", "c"], seed=0)]
        [[0, 1], [2]]
    """

    num_clients: Any = None
    """An integer; None where it follows from the labels."""

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the row numbers of each client: disjoint, covering all rows, none empty.

        Args:
            labels: text, the label of each row.
            rng: the only source of chance.
        """
        raise NotImplementedError


@section
class Given(Partition):
    """The clients as they are: each label is one, such as that of `Memory.of_clients`."""

    name: Literal["given"] = "given"
    clients: tuple[str, ...] = ()
    """The labels in the order of the clients; sorted when empty."""

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        clients = self.clients or sorted(set(labels.tolist()))
        if unlisted := sorted(set(labels.tolist()) - set(clients)):
            raise DataError(
                f"label {unlisted[0]!r} is no client of partition.clients; list it, or leave the "
                "list empty for all labels"
            )
        return [np.flatnonzero(labels == client) for client in clients]


@section
class Natural(Partition):
    """One label per client: a household of lights, a household of timers."""

    name: Literal["natural"] = "natural"
    num_clients: NumClients = 9
    """With fewer clients than labels a client gets several; with more, clients share a label."""

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        kinds, counts = np.unique(labels, return_counts=True)
        if self.num_clients <= len(kinds):
            return self._several_labels_each(labels, kinds, counts)
        # The label with the most examples per client is shared by one client more.
        clients_of = np.ones(len(kinds), dtype=int)
        for _ in range(self.num_clients - len(kinds)):
            clients_of[np.argmax(counts / clients_of)] += 1
        parts = []
        for kind, num_clients in zip(kinds, clients_of, strict=True):
            parts += np.array_split(rng.permutation(np.flatnonzero(labels == kind)), num_clients)
        return parts

    def _several_labels_each(
        self, labels: np.ndarray, kinds: np.ndarray, counts: np.ndarray
    ) -> list[np.ndarray]:
        """Give each label, largest first, to the client with the fewest examples."""
        sizes = np.zeros(self.num_clients, dtype=int)
        owner = {}
        for kind in np.argsort(-counts, kind="stable"):
            # A client without a label comes first, even where a label has no weight to speak of.
            owner[kinds[kind]] = client = int(np.argmin(sizes))
            sizes[client] += counts[kind]
        owners = np.array([owner[label] for label in labels])
        return [np.flatnonzero(owners == client) for client in range(self.num_clients)]


@section
class Iid(Partition):
    """Every client draws from the whole training set, in equal numbers."""

    name: Literal["iid"] = "iid"
    num_clients: NumClients = 9

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(rng.permutation(len(labels)), self.num_clients)


@section
class Dirichlet(Partition):
    """Share out each label by its own Dirichlet draw over the clients.

    Source: the non-identical split of Hsu et al. 2019 (arXiv:1909.06335), drawn per label over the
    clients rather than per client over the labels, so that every example is used exactly once.
    """

    name: Literal["dirichlet"] = "dirichlet"
    num_clients: NumClients = 9
    alpha: Concentration = 0.5
    """Small: a client has few labels. Large: every client looks like the whole."""

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = [[] for _ in range(self.num_clients)]
        for kind in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == kind))
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha))
            for part, piece in zip(parts, _cut(rows, shares), strict=True):
                part.append(piece)
        return _feed_the_empty([np.concatenate(part) for part in parts])


@section
class Shards(Partition):
    """Sort by label, cut into equal shards, deal each client the same number.

    Source: the pathological split of McMahan et al. 2017 (arXiv:1602.05629, sec. 3).
    """

    name: Literal["shards"] = "shards"
    num_clients: NumClients = 9
    shards_per_client: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        rows = rng.permutation(len(labels))
        by_label = rows[np.argsort(labels[rows], kind="stable")]
        shards = np.array_split(by_label, self.num_clients * self.shards_per_client)
        deal = rng.permutation(len(shards)).reshape(self.num_clients, -1)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in deal]


@section
class Quantity(Partition):
    """Mixed labels, but unequal numbers: sizes follow one Dirichlet draw over the clients."""

    name: Literal["quantity"] = "quantity"
    num_clients: NumClients = 9
    alpha: Concentration = 1.0
    """Small: a few clients hold nearly everything. Large: equal numbers."""

    def split(self, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        shares = rng.dirichlet(np.full(self.num_clients, self.alpha))
        return _feed_the_empty(_cut(rng.permutation(len(labels)), shares))


PARTITIONS = Open(
    "fedmoe.partitions", Partition, (Natural, Iid, Dirichlet, Shards, Quantity, Given)
)
"""Components that `partition` in a configuration may name."""


def partition(
    config: Partition, labels: Sequence[str], seed: int, rows: RowCounts | None = None
) -> tuple[np.ndarray, ...]:
    """Return one sorted array of row numbers per client: disjoint, covering, none empty.

    Dirichlet and quantity give a client that chance left empty one example of the largest client.

    Args:
        rows: what became of the rows that the examples are from, for the errors.

    Raises:
        DataError: fewer examples, or fewer of a label, than clients that need one.
    """
    # Where the rows went comes first: fewer clients would only hide it.
    remedy = f"rows: {rows}; " if rows else ""
    remedy += "keep more of them, or " if rows and rows.dropped else ""
    remedy += "lower partition.num_clients" if config.num_clients else "give it rows"
    if len(labels) < (config.num_clients or 1):
        raise DataError(
            f"client {len(labels)} would get no examples: {len(labels)} example(s)"
            f" for {config.num_clients or 'its'} clients; {remedy}"
        )
    parts = config.split(np.asarray(labels, dtype=str), numpy_rng(seed, "partition", config.name))
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise DataError(
                f"client {client} would get no examples: {config.name} over {len(parts)}"
                f" clients leaves it none of {len(labels)}; {remedy}"
            )
    if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels))):
        raise DataError(
            f"{config.name} does not give every one of {len(labels)} examples to one client; "
            "correct its `split`"
        )
    return tuple(np.sort(part) for part in parts)


def _cut(rows: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int))


def _feed_the_empty(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Move one example from the largest client to each that chance left with none."""
    for client, part in enumerate(parts):
        if len(part) == 0:
            rich = int(np.argmax([len(other) for other in parts]))
            parts[client], parts[rich] = parts[rich][-1:], parts[rich][:-1]
    return parts

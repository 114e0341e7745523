"""Shared parts of strategies that combine the products BA rather than their factors.

They look at all updates of a round together: what they hold grows with the clients of a round,
never with a dense delta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter, Entry, Layout
from fedmoe.aggregation.factored import Factored, best_factors
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update


class Pair(NamedTuple):
    """The two factors of one weight, or of the stacked weights of a layer's experts."""

    A: str
    B: str
    layer: int | None


@dataclass(frozen=True, eq=False)
class Trained:
    """One client's adapter after training, and its unnormalised weight.

    `client[name]` is made when it is asked for: what clients sent is held once, not twice.
    """

    start: dict[str, Tensor]
    delta: dict[str, Tensor]
    scale: float
    weight: float
    counts: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.start[name] + self.delta[name]


def pairs(layout: Layout) -> list[Pair]:
    """The factor pairs of a layout, in its order."""
    return [Pair(e.name, e.name[:-1] + "B", e.layer) for e in layout.entries if e.kind == "A"]


def trained(
    updates: Iterable[Update], start: Callable[[Layout], Adapter], size: Callable[[Update], float]
) -> list[Trained]:
    """The clients' adapters: where each started, `start(layout)`, plus its delta.

    Raises:
        AggregationError: there are no updates, or all have size 0.
    """
    clients: list[Trained] = []
    starts: dict[str, dict[str, Tensor]] = {}
    for update in updates:
        if not (weight := size(update)):
            continue
        layout = update.delta.layout
        begun = starts.get(layout.digest) or start(layout).views()
        starts[layout.digest] = begun
        delta = update.delta.views()
        clients.append(Trained(begun, delta, layout.scale, weight, update.counts))
    if not clients:
        raise AggregationError("no client updates to combine in this round")
    return clients


def shares(
    clients: Sequence[Trained], pair: Pair, num_experts: int
) -> Float[Tensor, "clients ..."]:
    """The clients' weights, summing to 1, (clients, experts) or (clients,)."""
    share = torch.tensor([client.weight for client in clients], dtype=torch.float64)
    share = share / share.sum()
    return share if pair.layer is None else share[:, None].expand(-1, num_experts)


def reached(clients: Sequence[Trained], pair: Pair) -> Tensor:
    """Return a mask of the experts that a client used, (experts, 1, 1); True for a shared part."""
    if pair.layer is None:
        return torch.tensor(True)
    used = sum(client.counts[pair.layer] * (client.weight > 0) for client in clients)
    assert isinstance(used, Tensor)
    return (used > 0)[:, None, None]


def nearest(
    clients: Sequence[Trained],
    pair: Pair,
    state: Adapter,
    rank: int,
    also: Sequence[tuple[float, Tensor, Tensor]] = (),
) -> Factored:
    """The best factors of rank `rank`, at the state's scale, of the clients' mean product.

    `also` are further products (weight, B, A) at the state's scale that go into the sum. Their
    components of zeros are left out, which keeps the work small and the rank of the sum exact.
    """
    layout, also = state.layout, [(weight, *_nonzero(b, a)) for weight, b, a in also]
    weights = list(shares(clients, pair, layout.num_experts))
    weights += [torch.full_like(weights[0], weight) for weight, _, _ in also]
    scales = [client.scale / layout.scale for client in clients] + [1.0] * len(also)
    Bs = [client[pair.B] for client in clients] + [b for _, b, _ in also]
    As = [client[pair.A] for client in clients] + [a for _, _, a in also]
    return best_factors(torch.stack(weights), scales, Bs, As, rank)


def _nonzero(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The components whose column of B has a value for any expert."""
    used = b.flatten(0, -2).any(0)
    return b[..., used], a[..., used, :]


def others(layout: Layout) -> Iterator[Entry]:
    """The entries that are no factors: routers' shifts."""
    return (entry for entry in layout.entries if entry.rank_axis is None)


def mean_of(clients: Sequence[Trained], name: str) -> Tensor:
    """The clients' weighted mean of one tensor, float64; they have one rank, or it has none."""
    total = torch.zeros_like(clients[0].delta[name], dtype=torch.float64)
    for client in clients:
        total += client.weight * client[name].double()
    return total / sum(client.weight for client in clients)

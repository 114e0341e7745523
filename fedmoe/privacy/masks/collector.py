"""The server's side of a round of masked sums: it passes messages on, and unmasks the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmoe.errors import AggregationError
from fedmoe.privacy.masks.keys import KeyPair, add_mask
from fedmoe.privacy.masks.party import Advert, Reveal, commitment, own_mask_key, pair_text, sign_of
from fedmoe.privacy.masks.shares import join

CHANGED = (
    "shares of client {client}'s {what} do not give it back: somebody revealed a wrong one, or "
    "shared wrongly. The round is lost"
)


def neighbours_of(
    clients: Sequence[int], number: int, order: Sequence[int]
) -> dict[int, list[int]]:
    """Return each client's neighbours, alike both ways: those next to it on a ring in random order.

    Args:
        clients: all that take part.
        number: neighbours of each, made even; all others where there are no more.
        order: a random order of the clients' places.

    >>> neighbours_of([0, 1, 2, 3, 4, 5], 2, [0, 1, 2, 3, 4, 5])[0]
    [1, 5]
    """
    ring = [clients[place] for place in order]
    if number >= len(ring) - 1:
        return {client: sorted({*ring} - {client}) for client in sorted(ring)}
    half = max(1, math.ceil(number / 2))
    steps = [step for n in range(1, half + 1) for step in (n, -n)]
    found = {
        client: sorted({ring[(place + step) % len(ring)] for step in steps} - {client})
        for place, client in enumerate(ring)
    }
    return dict(sorted(found.items()))


@dataclass(eq=False)
class Collector:
    """One round at the server; what it holds is one sum and the clients' public messages."""

    about: bytes
    neighbours: dict[int, list[int]]
    threshold: int
    length: int
    adverts: dict[int, Advert] = field(default_factory=dict)
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """By sender, then receiver."""
    reveals: dict[int, Reveal] = field(default_factory=dict)
    arrived: list[int] = field(default_factory=list)
    total: np.ndarray | None = None

    def adverts_for(self, client: int) -> dict[int, Advert]:
        """Return the public keys of a client's neighbours that sent theirs."""
        return {n: self.adverts[n] for n in self.neighbours[client] if n in self.adverts}

    def sealed_for(self, client: int) -> dict[int, bytes]:
        """Return what a client's neighbours sealed for it."""
        return {
            n: self.sealed[n][client]
            for n in self.neighbours[client]
            if client in self.sealed.get(n, ())
        }

    def add(self, client: int, masked: np.ndarray) -> None:
        """Add a masked uint64 vector to the sum.

        Raises:
            AggregationError: it has another length, or the client did not share its secrets.
        """
        if client not in self.sealed or client in self.arrived or len(masked) != self.length:
            raise AggregationError(f"client {client}'s masked vector has no place in this round")
        if self.total is None:
            self.total = np.zeros(self.length, np.uint64)
        self.total += masked
        self.arrived.append(client)

    def unmasked(self) -> np.ndarray:
        """Return the sum of the vectors that arrived, uint64; the round ends with it.

        Raises:
            AggregationError: too few clients revealed their shares.
        """
        if self.total is None:
            raise AggregationError("no masked vector arrived in this round")
        there = set(self.arrived)
        for client in self.arrived:
            seed = join(self._shares(client, "seeds"), self.threshold)
            if commitment(seed, self.about) != self.adverts[client].commitment:
                raise AggregationError(CHANGED.format(client=client, what="mask"))
            add_mask(self.total, own_mask_key(seed, self.about), -1)
        for gone in self.sealed.keys() - there:
            helped = [n for n in self.neighbours[gone] if n in there and gone in self._used(n)]
            if not helped:
                continue
            pair = KeyPair.of(join(self._shares(gone, "keys"), self.threshold))
            if pair.public != self.adverts[gone].masking:
                raise AggregationError(CHANGED.format(client=gone, what="key"))
            for client in helped:
                key = pair.agree(self.adverts[client].masking, pair_text(self.about))
                add_mask(self.total, key, -sign_of(client, gone))
        return self.total

    def _used(self, client: int) -> set[int]:
        """Return the neighbours with which a client shares a mask."""
        return set(self.sealed_for(client))

    def _shares(self, client: int, kind: str) -> dict[int, bytes]:
        """Return the revealed shares of a client's seed or key, by their place among the shares."""
        places = {n: i for i, n in enumerate(sorted(self.adverts_for(client)))}
        found: dict[int, bytes] = {}
        for helper, reveal in self.reveals.items():
            held: Mapping[int, bytes] = getattr(reveal, kind)
            if client in held and helper in places:
                found[places[helper]] = held[client]
        return found

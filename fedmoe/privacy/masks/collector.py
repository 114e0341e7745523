"""The server's side of a round of masked sums: it passes messages on, and unmasks the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np

from fedmoe.errors import AggregationError
from fedmoe.privacy.masks.keys import KeyPair, add_mask
from fedmoe.privacy.masks.party import Advert, Reveal, commitment, own_mask_key, pair_text, sign_of
from fedmoe.privacy.masks.shares import join

CHANGED = (
    "no {threshold} of the {number} shares of client {client}'s {what} give it back: it shared "
    "wrongly, or too many revealed wrong ones. The round is lost"
)
MOST_TRIES = 1000
"""Sets of shares of one secret that are tried: three wrong ones of twenty take 1160."""


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


def pair_of(client: int, other: int) -> frozenset[int]:
    """Return two clients as a pair, of which one refuses the other."""
    return frozenset((client, other))


def left_alone(
    clients: Sequence[int], pairs: Collection[frozenset[int]], threshold_of: Callable[[int], int]
) -> dict[int, list[int]]:
    """Return whom too few others are left for, by the pairs of which one refuses the other.

    Nobody can tell which of a pair is wrong. They are no neighbours any more, which costs an honest
    client nothing but the dishonest; who is in the most pairs leaves first.

    >>> left_alone(range(5), [pair_of(4, c) for c in range(3)], lambda others: 3)
    {4: [0, 1, 2]}
    """
    there, found = {*clients}, dict[int, list[int]]()
    while there:
        against = {c: [o for o in sorted(there) if pair_of(c, o) in pairs] for c in sorted(there)}
        worst = max(against, key=lambda client: len(against[client]))
        others = len(there) - 1 - len(against[worst])
        if not against[worst] or others >= threshold_of(len(there) - 1):
            break
        found[worst] = against[worst]
        there.remove(worst)
    return found


def both_of(pairs: Collection[frozenset[int]]) -> dict[int, list[int]]:
    """Return clients without whom no pair is left, with the other of the pair that each leaves by.

    Of each such pair one at least is dishonest, and so no more honest clients leave than others.

    >>> both_of([pair_of(4, c) for c in range(3)])
    {0: [4], 4: [0]}
    """
    found = dict[int, list[int]]()
    for first, second in sorted(map(sorted, pairs)):
        if first not in found and second not in found:
            found |= {first: [second], second: [first]}
    return found


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
    wrong: dict[int, set[int]] = field(default_factory=dict)
    """By helper: the clients of whose secrets it revealed shares that fit no others."""
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
            seed = self._secret(client, "seeds", self._is_seed)
            add_mask(self.total, own_mask_key(seed, self.about), -1)
        for gone in self.sealed.keys() - there:
            helped = [n for n in self.neighbours[gone] if n in there and gone in self._used(n)]
            if not helped:
                continue
            pair = KeyPair.of(self._secret(gone, "keys", self._is_key))
            for client in helped:
                key = pair.agree(self.adverts[client].masking, pair_text(self.about))
                add_mask(self.total, key, -sign_of(client, gone))
        return self.total

    def _used(self, client: int) -> set[int]:
        """Return the neighbours with which a client shares a mask."""
        return set(self.sealed_for(client))

    def _is_seed(self, client: int, secret: bytes) -> bool:
        return commitment(secret, self.about) == self.adverts[client].commitment

    def _is_key(self, client: int, secret: bytes) -> bool:
        return KeyPair.of(secret).public == self.adverts[client].masking

    def _secret(self, client: int, kind: str, fits: Callable[[int, bytes], bool]) -> bytes:
        """Return a client's seed or key from revealed shares, and note which of them do not fit.

        Raises:
            AggregationError: no set of them gives it back.
        """
        places = {n: i for i, n in enumerate(sorted(self.adverts_for(client)))}
        told: dict[int, bytes] = {}
        for helper, reveal in self.reveals.items():
            held: Mapping[int, bytes] = getattr(reveal, kind)
            if client in held and helper in places:
                told[helper] = held[client]
        # Those who were wrong before come last.
        helpers = sorted(told, key=lambda helper: (helper in self.wrong, helper))

        def joined(some: Collection[int]) -> bytes:
            return join({places[h]: told[h] for h in some}, self.threshold)

        spare = max(0, len(helpers) - self.threshold)
        sets = (out for number in range(spare + 1) for out in combinations(helpers, number))
        for out in islice(sets, MOST_TRIES):
            some = [h for h in helpers if h not in out][: self.threshold]
            if fits(client, secret := joined(some)):
                for other in {*helpers} - {*some} if out else ():
                    if joined([*some[1:], other]) != secret:
                        self.wrong.setdefault(other, set()).add(client)
                return secret
        what = "mask" if kind == "seeds" else "key"
        said = CHANGED.format(threshold=self.threshold, number=len(told), client=client, what=what)
        raise AggregationError(said)

"""The messages of masked sums as kinds of `crossings.py`: at a client, and at the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.errors import AggregationError, WireError
from fedmoe.messages.records import Message, Task
from fedmoe.privacy.masks.collector import Collector
from fedmoe.privacy.masks.party import Party
from fedmoe.privacy.masks.settings import SecureAggregation
from fedmoe.privacy.masks.steps import Parties
from fedmoe.privacy.masks.wire import (
    Bounds,
    Request,
    advert_values,
    read_advert,
    read_refused,
    read_request,
    read_reveal,
    read_shares,
    refused_text,
    reveal_text,
    shares_text,
)
from server.masks import read_masked

if TYPE_CHECKING:
    from simulations.crossings import Kind

ABOUT, CLIENTS, LENGTH = "run|1|a", range(4), 16


def masked_kinds(kind: type[Kind], task: Task) -> Iterator[tuple[str, Kind]]:
    """Yield every kind by name: what client 0 is asked, and what it answers."""
    about, of = ABOUT.encode(), json.loads
    parties = {client: Party(about, client, 2) for client in CLIENTS}
    neighbours = {c: [other for other in CLIENTS if other != c] for c in CLIENTS}
    collector = Collector(about, neighbours, 2, LENGTH)
    collector.adverts = adverts = {c: party.advertise() for c, party in parties.items()}
    share = Request("share", ABOUT, adverts=collector.adverts_for(0), threshold=2)
    fresh = replace(parties[0])
    yield "masks: share", kind(of(share.text()), b"", lambda text, _: asked(fresh, text))
    shared: Any = {c: p.share(collector.adverts_for(c)) for c, p in parties.items()}
    collector.sealed = shared
    bounds = Bounds(4, 1.0, 100, 1.0, {2: 4}, "changes")
    opening = Request("open", ABOUT, sealed=collector.sealed_for(0))
    shared = replace(parties[0], held={}, pairs={})
    yield "masks: open", kind(of(opening.text()), b"", lambda text, _: asked(shared, text))
    refused = of(refused_text(parties[0].open(collector.sealed_for(0))))
    yield "refused", kind(refused, b"", lambda text, _: read_refused(text, neighbours[0]))
    mask = Request("mask", ABOUT, bounds=bounds)
    opened = replace(parties[0])
    yield "masks: mask", kind(of(mask.text()), b"", lambda text, _: masked(opened, text))
    vector = parties[0].mask(np.zeros(LENGTH, np.uint64)).tobytes()
    met = replace(parties[0])
    reveal = Request("reveal", ABOUT, arrived=(0, 1, 2))
    yield "masks: reveal", kind(of(reveal.text()), b"", lambda text, _: asked(met, text))
    yield "advert", kind(advert_values(adverts[0]), b"", lambda text, _: read_advert(text))
    shares = of(shares_text(collector.sealed[0]))
    yield "sealed shares", kind(shares, b"", lambda text, _: read_shares(text, neighbours[0]))
    revealed = of(reveal_text(parties[0].reveal([0, 1, 2])))
    yield "revealed", kind(revealed, b"", lambda text, _: read_reveal(text, [1, 2], [3]))

    def add(text: str, data: bytes) -> None:
        now = replace(collector, arrived=[], total=None)
        try:
            now.add(0, taken(task, text, data))
        except AggregationError as error:
            raise WireError(str(error)) from error

    yield "masked vector", kind({}, vector, add, lambda: collector.total is None)


def asked(party: Party, text: str) -> None:
    """Make a step, as a client that has just made the one before."""
    parties = Parties(SecureAggregation(threshold=0.6), None)
    parties.parties[0] = replace(
        party, held=dict(party.held), pairs={}, adverts=dict(party.adverts)
    )
    parties.answer(0, read_request(text))


def masked(party: Party, text: str) -> None:
    """Mask a vector, as a client that has opened what was shared with it."""
    parties = Parties(SecureAggregation(), None)
    parties.parties[0] = replace(party)
    parties.mask(0, read_request(text), np.zeros(LENGTH, np.uint64))


def taken(task: Task, text: str, data: bytes) -> Any:
    """Read a masked vector, as a server does."""
    return read_masked(Message(text, data), task).masked

"""The terms of a round's mean: what each client sent and weighs, and what a rule made of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.robust.geometry import scaled
from fedmoe.aggregation.streaming import Weights, partial_sums
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update
from fedmoe.system.mapped import mapped

IN_MEMORY = 2**30
"""Bytes of a round's deltas that are held in memory; the rest is in files."""


@dataclass(frozen=True, eq=False)
class Terms:
    """All updates of a round with their weights, by owner: every expert, then shared parts."""

    strategy: Mean
    state: Adapter
    updates: list[Update]
    weights: Float[Tensor, "clients owners"]
    """As the strategy weighs, float64."""
    used: Bool[Tensor, "clients owners"]
    """Whether a client trained the expert and weighs something: who then is a reporter of it."""
    root: Update | None = None
    """The server's own update, for a rule that asks for one."""

    @classmethod
    def of(
        cls, strategy: Mean, state: Adapter, updates: Iterable[Update], root: Update | None = None
    ) -> Terms:
        """Return the terms of updates, all of which are kept, `IN_MEMORY` bytes of them in memory.

        Raises:
            AggregationError: there are none.
        """
        if not (sent := [*_held(updates)]):
            raise AggregationError("no client updates to average in this round")
        rows, used = [], []
        for update in sent:
            found = strategy.weigh(update)
            row = torch.cat([found.experts.flatten().double(), torch.tensor([found.shared])])
            rows.append(row.double())
            used.append(torch.cat([update.counts.flatten() > 0, torch.tensor([True])]))
        weights = torch.stack(rows)
        return cls(strategy, state, sent, weights, torch.stack(used) & (weights > 0), root)

    def next_state(self, choice: Choice) -> Adapter:
        """Return the weighted mean of the clients' deltas with the weights and factors chosen.

        With those of the strategy itself it is the strategy's next state, to the bit.
        """
        first, weights = self.updates[0], [*choice.weights]
        kept = (
            replace(update, delta=scaled(update.delta, row))
            for update, row in zip(self.updates, choice.factors, strict=True)
        )
        if choice.anchor and choice.anchor[1].any():
            kept = chain(kept, [replace(first, delta=choice.anchor[0])])
            weights.append(choice.anchor[1])
        layout, rows = first.delta.layout, iter(weights)
        shape = layout.num_layers, layout.num_experts

        def weigh(_: Update) -> Weights:
            row = next(rows)  # each update is weighed once, in their order
            return Weights(row[:-1].view(shape), float(row[-1]))

        return self.strategy.combine_sums(self.state, partial_sums(layout, kept, weigh))


@dataclass(frozen=True, eq=False)
class Choice:
    """A rule's choice in a round: other weights, and deltas multiplied by factors up to 1."""

    weights: Float[Tensor, "clients owners"]
    factors: Float[Tensor, "clients owners"]
    anchor: tuple[Adapter, Float[Tensor, " owners"]] | None = None
    """A further delta, which no client sent, and its weights."""


def _held(updates: Iterable[Update]) -> Iterator[Update]:
    """Pass updates on, in files from a size on."""
    num_bytes = 0
    for update in updates:
        num_bytes += update.delta.flat.nbytes
        if num_bytes > IN_MEMORY:
            update = replace(update, delta=Adapter(update.delta.layout, mapped(update.delta.flat)))
        yield update


def capped(
    weights: Float[Tensor, "clients owners"], most_share: float
) -> Float[Tensor, "clients owners"]:
    """Return weights of which none is more than `most_share` of their sum, owner by owner.

    The largest are lowered to one common value; where so few have a weight that this cannot be
    (two, with a share of 0.4), all of them weigh the same. Columns in which nobody has more keep
    every bit.
    """
    ordered = weights.sort(dim=0, descending=True).values
    total, limit = ordered.sum(0), torch.full_like(ordered[0], torch.inf)
    rest = total.clone()
    for k in range(len(weights)):
        room = 1 - k * most_share
        level = most_share * rest / room if room > 0 else torch.zeros_like(rest)
        fits = limit.isinf() & (ordered[k] <= level) & (level > 0)
        limit = torch.where(fits, level, limit)
        rest = rest - ordered[k]
    least = torch.where(weights > 0, weights, torch.inf).amin(0)
    stuck = limit.isinf() & (total > 0)
    return torch.minimum(weights, torch.where(stuck, least, limit))


def shares(weights: Float[Tensor, "clients owners"]) -> Float[Tensor, "clients owners"]:
    """Return weights that sum to one, owner by owner; zeros where nobody weighs."""
    total = weights.sum(0)
    return weights / total.where(total > 0, 1)


def redistributed(
    terms: Terms,
    guarded: Choice,
    votes: Float[Tensor, "clients owners"],
    enough: Bool[Tensor, " owners"],
) -> Choice:
    """Return a choice in which the reporters' weight is shared out by `votes`.

    Clients that weigh without having trained an expert keep their weight, and so the strategy's
    dilution. Where `enough` is false, everything stays; where nobody has a vote, nothing moves.
    """
    mine = guarded.weights * terms.used
    total = votes.sum(0)
    new = votes * (mine.sum(0) / total.where(total > 0, 1))
    weights = torch.where(enough, torch.where(terms.used, new, guarded.weights), guarded.weights)
    return Choice(weights, guarded.factors)

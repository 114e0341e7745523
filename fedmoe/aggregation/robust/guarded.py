"""The guard that every rule starts from: norms and sizes are held to the round's medians."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.robust.geometry import MEASURES, Known, Moves, moves_of, scaled
from fedmoe.aggregation.robust.judgement import Judgement, Verdict
from fedmoe.aggregation.robust.rule import Centre, Outcome, RobustRule, steady
from fedmoe.aggregation.robust.terms import Choice, Terms, capped, shares
from fedmoe.aggregation.strategy import Aggregator
from fedmoe.messages.records import Update
from fedmoe.section import section

HALVINGS = 30
FEW = 3
"""Reporters of which one that lies has no say in the median."""


@section
class Guarded(RobustRule):
    """Base of rules that judge clipped updates with capped weights; see `Clip` for both."""

    most_norm: Annotated[float, Field(ge=1)] | None = 2.0
    """Largest norm of an update, as a multiple of the median over those that trained the expert;
    unlimited when null. Norms of AdamW's updates are much alike; raise it where clients train for
    unlike numbers of steps."""
    most_size: Annotated[float, Field(ge=1)] | None = 2.0
    """Largest size of a client (`aggregation.weighting`) that counts, as a multiple of the median
    in the round; unlimited when null. Raise it where sizes are truly that unlike."""
    most_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of a client in any expert's weight, and in that of shared parts; unlimited when
    null. Where fewer clients than 1 / share weigh something, all of them weigh the same."""

    @property
    def needed(self) -> int:
        """Return the reporters of an expert below which it is only clipped and capped."""
        return FEW

    def combine(
        self,
        strategy: Aggregator,
        state: Adapter,
        updates: Iterable[Update],
        num_clients: int = 0,
        centre: Centre | None = None,
        root: Update | None = None,
    ) -> Outcome:
        assert isinstance(strategy, Mean), strategy
        terms = Terms.of(strategy, state, updates, root)
        known: Known = {}
        moves = [moves_of(state, update.delta, known) for update in terms.updates]
        guarded = self.guard(terms, moves)
        choice = self.choose(terms, guarded, centre or {})
        made = self.next_state(terms, choice, centre or {})
        squares = torch.stack([m.plain.sum(0) for m in moves])
        told = judged(str(self.name), terms, choice, squares, self.needed)
        return Outcome(made, self.remembered(terms, made), told)

    def guard(self, terms: Terms, moves: list[Moves]) -> Choice:
        """Return the strategy's weights, capped, and the factors that clip; see `Clip`."""
        factors, weights = torch.ones_like(terms.weights), terms.weights
        if self.most_norm is not None:
            norms = torch.stack([m.norms() for m in moves])
            limits = self.most_norm * typical(norms, terms)
            factors = torch.stack([clipped(m, limits) for m in moves])
        weights = weights * self.fair(weights[:, -1])[:, None]
        if self.most_share is not None:
            weights = capped(weights, self.most_share)
        return Choice(weights, factors)

    def fair(self, sizes: Tensor) -> Tensor:
        return super().fair(sizes) if self.most_size is None else fair(sizes, self.most_size)

    def choose(self, terms: Terms, guarded: Choice, centre: Centre) -> Choice:
        """Return the rule's choice, which starts from clipped updates and capped weights."""
        return guarded

    def next_state(self, terms: Terms, choice: Choice, centre: Centre) -> Adapter:
        """Return the state that a choice makes."""
        return terms.next_state(choice)

    def remembered(self, terms: Terms, made: Adapter) -> Centre:
        """Return what the next round is to know."""
        return {}


def typical(
    norms: Float[Tensor, "clients measures owners"], terms: Terms
) -> Float[Tensor, "measures owners"]:
    """Return the median norms over each owner's reporters; of few, the median of its layer.

    Who sends zeros has no vote, else half of the clients could hold all others' updates to nothing.
    """
    layout = terms.updates[0].delta.layout
    moved = terms.used & (norms > 0).any(1)
    reported = moved[:, None].expand_as(norms)
    of_owner = _middle(norms, reported, 0)
    num_layers, experts = layout.num_layers, layout.num_experts
    if not num_layers:
        return of_owner
    shape = (len(norms), MEASURES, num_layers, experts)
    by_layer, there = norms[..., :-1].reshape(shape), reported[..., :-1].reshape(shape)
    of_client = _middle(by_layer, there, -1)
    of_layer = _middle(of_client, there.any(-1), 0)
    spread = torch.cat([of_layer.repeat_interleave(experts, -1), of_owner[:, -1:]], -1)
    return torch.where(moved.sum(0) < FEW, spread, of_owner)


def fair(sizes: Float[Tensor, " clients"], most: float) -> Float[Tensor, " clients"]:
    """Return the factors up to 1 that bring sizes down to a multiple of the lower median."""
    if not len(there := sizes[sizes > 0]):
        return torch.ones_like(sizes)
    return (most * there.median() / sizes.clamp(min=1e-150)).clamp(max=1)


def clipped(moves: Moves, limits: Float[Tensor, "measures owners"]) -> Float[Tensor, " owners"]:
    """Return the largest factors up to 1 with which no norm is over its limit, by halving."""
    if (fits := (moves.norms() <= limits).all(0)).all():
        return torch.ones_like(limits[0])
    low, high = torch.zeros_like(limits[0]), torch.ones_like(limits[0])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        under = (moves.norms(middle) <= limits).all(0)
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return torch.where(fits, 1.0, steady(low))


def shrunk(terms: Terms, choice: Choice) -> list[Adapter]:
    """Return the clients' clipped deltas."""
    pairs = zip(terms.updates, choice.factors, strict=True)
    return [scaled(update.delta, row) for update, row in pairs]


def typical_of(
    values: Float[Tensor, "owners clients"], used: Bool[Tensor, "owners clients"]
) -> Float[Tensor, "owners one"]:
    """Return the lower median over each owner's reporters; 0 without any."""
    return _middle(values, used, -1).unsqueeze(-1)


def _middle(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Return the lower median along an axis of the values in a mask; 0 without any."""
    ordered = torch.where(mask, values, torch.inf).sort(dim).values
    place = ((mask.sum(dim, keepdim=True) - 1) // 2).clamp(min=0)
    found = ordered.gather(dim, place).squeeze(dim)
    return torch.where(found.isinf(), 0.0, found)


def judged(
    rule: str, terms: Terms, choice: Choice, squares: Float[Tensor, "clients owners"], needed: int
) -> Judgement:
    """Return what a rule that needs so many reporters did; `squares` are the deltas' norms'."""
    before, after = shares(terms.weights), shares(choice.weights)
    trained = terms.used.any(0)
    few = trained & (terms.used.sum(0) < needed)
    verdicts = []
    for i, update in enumerate(terms.updates):
        mine = terms.used[i]
        number = max(1, int(mine.sum()))
        kept = choice.factors[i].square() * squares[i]
        sent, left = float(squares[i].sum()), float(kept.sum())
        verdicts.append(
            Verdict(
                client=update.client,
                clipped=round(1 - (left / sent) ** 0.5, 4) if sent > left else 0.0,
                share=round(float(before[i][mine].sum()) / number, 4),
                share_after=round(float(after[i][mine].sum()) / number, 4),
                refused=int((mine & (choice.weights[i] == 0)).sum()),
                trained=int(mine.sum()),
            )
        )
    return Judgement(rule, tuple(verdicts), int(trained.sum()), int(few.sum()), needed)

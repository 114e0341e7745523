"""The mean of updates per expert: what the averaging strategies share but for their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut
from fedmoe.aggregation.strategy import Strategy, over
from fedmoe.aggregation.streaming import Sums, Weights, mean_of, partial_sums
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class BySize(Strategy):
    """Base of strategies in which clients count by their size."""

    size_weighted: ClassVar[bool] = True
    weighting: Literal["examples", "tokens", "uniform"] = "examples"
    """A client's size n_c: the examples it holds, the tokens it trained on, or 1."""

    def size(self, update: Update) -> float:
        """Return a client's `n_c`."""
        sizes = {"examples": update.examples, "tokens": update.tokens, "uniform": 1}
        return float(sizes[self.weighting])


@section
class Mean(BySize):
    """Average what clients sent; what they do not send stays as it is."""

    linear: ClassVar[bool] = True
    maskable: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """The next global state; see `streaming.weighted_mean` for promises and errors."""
        return self.combine_sums(adapter, self.sums(adapter, updates))

    def sums(self, adapter: Adapter, updates: Iterable[Update]) -> Sums:
        """Return the sums over some of a round's clients, such as those of a region.

        The sums of all regions, added (`Sums.add`), give `combine_sums` the state that `combine`
        makes of all updates, but for the rounding of float64.

        Args:
            adapter: the state before.
            updates: in the order of client ids; none give sums of zero.
        """
        layout, stream = peek(updates, adapter.layout)
        return partial_sums(layout, stream, self.weigh)

    def combine_sums(self, adapter: Adapter, sums: Sums) -> Adapter:
        """Return the next global state from the sums over all clients.

        Raises:
            AggregationError: they are over no update.
        """
        if sums.layout == adapter.layout:
            return mean_of(adapter, sums)
        return over(adapter, mean_of(cut(adapter, sums.layout), sums))

    def weigh(self, update: Update) -> Weights:
        """Return `n_c` for every expert and for shared parts."""
        n = self.size(update)
        return Weights(torch.full(update.counts.shape, n, dtype=torch.float64), n)


@section
class ByUse(Mean):
    """Base of means in which a client counts for an expert by how often it used it."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """The exponent t: 0 ignores how often an expert was used, larger trusts its users more."""

    def use(self, update: Update) -> Float64[Tensor, "layers experts"]:
        """Return how often a client used each expert: `a / S`, the share of its tokens."""
        return update.counts.double() / update.tokens

    def weigh(self, update: Update) -> Weights:
        """Return `f^t n` for experts, `n` for shared parts; see `Flame`."""
        n = self.size(update)
        # torch gives 0 ** 0 = 1, which is what makes t = 0 FedAvg.
        return Weights(self.use(update) ** self.temperature * n, n)


class TierShares:
    """Each tier's share of a round's means, over the experts that anybody trained.

    Example:
        >>> TierShares().taken()
        {}
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def add(self, strategy: Strategy, update: Update) -> None:
        """Take in an update; one to a strategy that is no mean has no weight to know."""
        if isinstance(strategy, Mean):
            weights = strategy.weigh(update).experts
            self.weights[update.tier] = self.weights.get(update.tier, 0) + weights

    def taken(self) -> dict[str, float]:
        """Return the round's shares by tier, whose sum is 1, and begin the next round."""
        weights, self.weights = self.weights, {}
        total = sum(weights.values())
        if not isinstance(total, Tensor) or not total.any():
            return {}
        return {
            tier: float((w[total > 0] / total[total > 0]).mean()) for tier, w in weights.items()
        }


def peek(updates: Iterable[Update], otherwise: Layout) -> tuple[Layout, Iterator[Update]]:
    """Return the layout of the first update, or `otherwise` without any; and all updates."""
    stream = iter(updates)
    held = list(islice(stream, 1))
    return held[0].delta.layout if held else otherwise, again(held, stream)


def again(held: list[Update], rest: Iterator[Update]) -> Iterator[Update]:
    """Yield what was read ahead, then the rest; an update is let go as soon as it is passed on."""
    while held:
        yield held.pop()
    yield from rest

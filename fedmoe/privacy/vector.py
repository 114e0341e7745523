"""A client's round as one vector of integers for masked sums, and the next state from their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation.blocks import Blocks
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.streaming import Sums, Weights
from fedmoe.messages.records import SUMMED
from fedmoe.privacy.masks.fixed_point import Part, decode, encode
from fedmoe.privacy.private_mean import PrivateMean, Tally, weights_bound

if TYPE_CHECKING:
    from fedmoe.messages.records import Update

LARGEST_LOSS = 1e4
"""Nats per token beyond which a loss is reported as this."""
NOISE_ROOM = 64.0
"""How often a part's noise may exceed its standard deviation before it leaves the range."""


@dataclass(frozen=True, eq=False)
class Vector:
    """The parts of the vectors of a round; the same for all that take part in it."""

    strategy: Mean
    layout: Layout
    """Of the updates."""
    num_clients: int
    """That may take part: the range of a sum is theirs."""
    largest_change: float
    """Of any value in one local round."""
    largest_size: float
    """Of a client (`aggregation.weighting`)."""
    most_tokens: int
    """Of a client in one local round."""
    most_examples: int
    """Of a client; more are told as so many."""
    private: PrivateMean | None = None
    """Clips and noises each vector; without it a sum is exact."""
    noise_part: float = 1.0
    """The part of the noise's variance that each client adds."""

    @property
    def num_owners(self) -> int:
        """Return the number of weights: of every expert of every layer, and of shared parts."""
        return self.layout.num_layers * self.layout.num_experts + 1

    @property
    def parts(self) -> list[Part]:
        """Return the vector's parts in their order, with their ranges."""
        n, size, owners = self.num_clients, self.layout.size, self.num_owners
        if self.private is None:
            weight = self.largest_size
            return [
                Part("changes", size, weight * self.largest_change, n),
                Part("weights", owners, weight, n),
                Part("reports", len(SUMMED), max(LARGEST_LOSS, self.most_examples), n),
                Part("counts", owners - 1, float(self.most_tokens), n),
            ]
        m, p = self.private.mechanism, self.private.mechanism.privacy
        root = NOISE_ROOM * math.sqrt(self.noise_part)
        clip, bound = self.private.clip, weights_bound(m)
        change = clip + root * m.deviation(clip, m.changes_share)
        weight = bound + root * m.deviation(bound, p.weights_share or 1.0)
        report = 2.0 + root * m.deviation(math.sqrt(len(SUMMED)), p.reports_share or 1.0)
        within = 0.5 + root * m.deviation(0.5, p.adaptive.share if p.adaptive else 1.0)
        return [
            Part("changes", size, change, n),
            Part("weights", owners, weight, n),
            Part("reports", len(SUMMED), report, n),
            Part("within", 1, within, n),
        ]

    @property
    def length(self) -> int:
        """Return the number of integers."""
        return sum(part.length for part in self.parts)

    def of(self, update: Update) -> np.ndarray:
        """Return a client's vector, uint64 (length,), for `masks.party.Party.mask`.

        Raises:
            FedMoEError: a value is outside the range that all agreed on.
        """
        if self.private is None:
            weights = self.strategy.weigh(update)
            descent = self._descent(update, weights)
            most = {float: LARGEST_LOSS, int: self.most_examples}
            told = ((getattr(update, f.name), most[f.type]) for f in SUMMED)
            reports = np.array([min(max(float(x), 0.0), largest) for x, largest in told])
            counts = update.counts.flatten().double().numpy()
            values = [descent.numpy(), _row(weights).numpy(), reports, counts]
        else:
            tally = Tally(torch.zeros(self.num_owners).double())
            descent = self._descent(update, self.private.weigh(update, tally))
            self.private.add_noise(descent, tally, self.noise_part)
            values = [t.numpy() for t in (descent, tally.weights, tally.reports, tally.within)]
        return encode(self.parts, values)

    def next_state(self, adapter: Adapter, total: np.ndarray, num_updates: int) -> Any:
        """Return the next state from a sum of vectors, and what it tells of the round.

        Args:
            adapter: the state before.
            total: the sum, uint64 (length,).
            num_updates: of how many clients.
        """
        found = {name: torch.from_numpy(v) for name, v in decode(self.parts, total).items()}
        sums = Sums(self.layout, found["changes"], found["weights"], num_updates)
        if self.private is not None:
            tally = Tally(found["weights"], found["reports"], found["within"])
            return self.private.next_state(adapter, sums, tally), dict(self.private.report)
        means = (found["reports"] / num_updates).tolist()
        report = {f.name: mean for f, mean in zip(SUMMED, means, strict=True)}
        return self.strategy.combine_sums(adapter, sums), report

    def counts(self, total: np.ndarray) -> np.ndarray | None:
        """Return the sum of clients' counts, int64 (layers, experts); None where none are sent."""
        if self.private is not None:
            return None
        found = decode(self.parts, total)["counts"]
        return np.rint(found).astype(np.int64).reshape(-1, self.layout.num_experts)

    def _descent(self, update: Update, weights: Weights) -> torch.Tensor:
        """Return less the weighted change, float64 (values,)."""
        descent = torch.zeros(self.layout.size, dtype=torch.float64)
        Blocks.of(self.layout).subtract(descent, [update.delta.flat], [_row(weights)])
        return descent


def _row(weights: Weights) -> torch.Tensor:
    """Return the weights of all experts, then of shared parts."""
    return torch.cat([weights.experts.flatten(), weights.experts.new_tensor([weights.shared])])


def stripped(update: Update) -> Update:
    """Return an update without what only the client may see: values, counts and reports."""
    nothing = Adapter(replace(update.delta.layout, entries=()), torch.zeros(0))
    return replace(
        update,
        delta=nothing,
        counts=torch.zeros_like(update.counts),
        withheld=True,
        masked=None,
        rows=None,
        metrics={},
    )


def ranges_text(parts: Sequence[Part]) -> str:
    """Return the parts' ranges and resolutions in words."""
    return ", ".join(f"{p.name} within {p.bound:g} in steps of {1 / p.scale:.1g}" for p in parts)

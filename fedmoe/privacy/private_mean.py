"""A strategy whose mean is taken of clipped vectors under noise, and what each round has cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation.mean import Mean, peek
from fedmoe.aggregation.streaming import Sums, Weights, partial_sums
from fedmoe.messages.records import SUMMED, Field, Update, least_report
from fedmoe.privacy.noise import Normals, SystemNormals, add_noise
from fedmoe.privacy.settings import Privacy

LARGEST_LOSS = 16.0
"""Nats per token to which reported losses are cut: a guess among nine million tokens."""
LEAST_SHARE = 0.1
"""Noised denominators are at least this share of the public ones, so that none is near zero."""


@dataclass(frozen=True)
class Mechanism:
    """The fixed part of a private mean, known to everybody before round 1."""

    privacy: Privacy
    noise_multiplier: float
    probability: float
    """With which each client takes part; 1 where that is no secret."""
    num_expected: float
    """Clients that take part in a round on average."""
    even: Float[Tensor, " owners"]
    """The mean client's weights if it used all experts alike: of every expert, then shared parts.
    """

    @property
    def changes_share(self) -> float:
        """Return the part of the vector's squared norm that is left for the changes."""
        return 1 - self.privacy.taken

    def deviation(self, bound: float, share: float) -> float:
        """Return the noise on a sum of parts of norm `bound`, which are a share of the vector."""
        return self.noise_multiplier * bound / math.sqrt(share)


@dataclass(eq=False)
class Tally:
    """The sum over clients of all that their vectors hold beside the changes."""

    weights: Float[Tensor, " owners"]
    reports: Float[Tensor, " reports"] = field(
        default_factory=lambda: torch.zeros(len(SUMMED)).double()
    )
    """Of `SUMMED`: losses and sizes, each as a share of its largest value."""
    within: Float[Tensor, " one"] = field(default_factory=lambda: torch.zeros(1).double())
    """Clients whose change was within the bound, less half of all."""


@dataclass
class PrivateMean:
    """Takes a strategy's place in the round loop; `clip` and `spent` go from round to round.

    Of its errors, `dp-accounting` or `cryptography` that are not installed are the only own ones.
    """

    strategy: Mean
    mechanism: Mechanism
    clip: float
    """The bound on a client's change in the next round."""
    report: dict[str, Any] = field(default_factory=dict)
    """The numbers that the last round published beside its adapter."""
    normals: Normals | None = None
    layout: Layout | None = None
    """Of the round's updates: a round without any must add noise to what others would send."""

    moves_alone: ClassVar[bool] = True
    """A round without updates moves the state, too: else it would say that nobody took part."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """Return the next state: noised sums over clipped terms; see `Privacy`."""
        tally = Tally(torch.zeros_like(self.mechanism.even))
        layout, stream = peek(updates, self.layout or adapter.layout)
        sums = partial_sums(layout, stream, lambda update: self.weigh(update, tally))
        self.add_noise(sums.descent, tally)
        return self.next_state(adapter, sums, tally)

    def add_noise(self, descent: Float[Tensor, " values"], tally: Tally, part: float = 1.0) -> None:
        """Add noise to every number of a sum of vectors, or of one vector, in place.

        Args:
            descent: the sum of weighted changes, or less it.
            tally: the other sums.
            part: of the noise's variance, where several add theirs.
        """
        m, p, normals = self.mechanism, self.mechanism.privacy, self.normals or SystemNormals()
        root = math.sqrt(part)
        add_noise(descent, root * m.deviation(self.clip, m.changes_share), normals)
        if p.denominators == "noised":
            deviation = root * m.deviation(weights_bound(m), p.weights_share)
            add_noise(tally.weights, deviation, normals)
        if p.reports_share:
            deviation = root * m.deviation(math.sqrt(len(SUMMED)), p.reports_share)
            add_noise(tally.reports, deviation, normals)
        if p.adaptive:
            add_noise(tally.within, root * m.deviation(0.5, p.adaptive.share), normals)

    def next_state(self, adapter: Adapter, sums: Sums, tally: Tally) -> Adapter:
        """Return the next state from noised sums; the sum of changes is used up."""
        sums.weights = self._denominators(tally)
        sums.num_updates = max(1, sums.num_updates)
        self._publish(tally)
        return self.strategy.combine_sums(adapter, sums)

    def weigh(self, update: Update, tally: Tally) -> Weights:
        """Return a client's weights, scaled down until its change is within the bound.

        Adds the rest of its vector to the tally.
        """
        p, mine = self.mechanism.privacy, _at_most_one(self.strategy, update, self.mechanism)
        size = norm(update.delta, mine)
        factor = min(1.0, self.clip / size) if size else 1.0
        if p.denominators == "noised":
            rows = torch.cat([mine.experts.flatten(), mine.experts.new_tensor([mine.shared])])
            bound = weights_bound(self.mechanism)
            tally.weights += rows * min(1.0, bound / float(rows.norm()))
        if p.reports_share:
            shares = [_share(getattr(update, f.name) / most_of(f, p)) for f in SUMMED]
            tally.reports += torch.tensor(shares).double()
        if p.adaptive:  # what no noise is added to may not be summed: masks give sums away
            tally.within += (size <= self.clip) - 0.5
        return Weights(mine.experts * factor, mine.shared * factor)

    def _denominators(self, tally: Tally) -> Float[Tensor, " owners"]:
        """Return what the sums of changes are divided by."""
        m = self.mechanism
        public = m.even * m.num_expected
        if m.privacy.denominators == "public":
            return public
        return tally.weights.maximum(public * LEAST_SHARE)

    def _publish(self, tally: Tally) -> None:
        """Note what a round tells, and let the bound follow the share of updates within it."""
        m, p = self.mechanism, self.mechanism.privacy
        self.report = {"clip": self.clip, "probability": m.probability}
        if p.reports_share:
            means = (tally.reports / m.num_expected).tolist()
            pairs = zip(SUMMED, means, strict=True)
            self.report |= {f.name: _share(mean) * most_of(f, p) for f, mean in pairs}
        if p.adaptive:
            share = _share(float(tally.within) / m.num_expected + 0.5)
            self.clip *= math.exp(-p.adaptive.rate * (share - p.adaptive.quantile))
            self.report["within"] = share

    # What noise on a sum leaves as it is.

    def extra_state(self, state: Layout) -> Layout | None:
        """Return the strategy's own."""
        return self.strategy.extra_state(state)

    def discount(self, update: Update, staleness: int) -> Update:
        """Return the update: there are no late ones."""
        return update

    def step(self, rule: Any, old: Any, proposed: Any, memory: Any) -> tuple[Adapter, Any]:
        """Return the strategy's step: what is made of a private mean costs nothing more."""
        return self.strategy.step(rule, old, proposed, memory)


def most_of(field: Field, privacy: Privacy) -> float:
    """Return the largest value of a report that counts: of a loss, or of a size."""
    return LARGEST_LOSS if field.type is float else float(privacy.most_size)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def norm(delta: Adapter, weights: Weights) -> float:
    """Return the L2 norm of a weighted change, `sqrt(sum of (weight * value)^2)`, in float64."""
    total = 0.0
    for entry, view in delta.layout.views(delta.flat):
        if entry.layer is None:
            total += float(view.double().square().sum()) * weights.shared**2
        else:
            squares = view.flatten(1).double().square().sum(1)
            total += float(squares @ weights.experts[entry.layer].square())
    return math.sqrt(total)


def weights_bound(mechanism: Mechanism) -> float:
    """Return the bound on a client's weights as a vector: twice what even use would give."""
    return 2 * float(mechanism.even.norm())


def even_weights(
    strategy: Mean, privacy: Privacy, top_ks: Sequence[int] | Mapping[int, int], layout: Layout
) -> Float[Tensor, " owners"]:
    """Return the mean weights of clients with these k if each used all experts alike.

    Args:
        strategy: says how an expert's use becomes a weight.
        privacy: its `most_size` is the size from which on all weigh 1.
        top_ks: of every client, or how many clients have each.
        layout: of the model's adapter; gives layers and experts.
    """
    total = torch.zeros(layout.num_layers * layout.num_experts + 1).double()
    for top_k, number in (clients := Counter(top_ks)).items():
        like = _even_use(layout, top_k, privacy.most_size)
        weights, size = strategy.weigh(like), strategy.size(like)
        row = torch.cat([weights.experts.flatten(), total.new_tensor([weights.shared])])
        total += row * (number / size)
    return total / max(1, clients.total())


def _even_use(layout: Layout, top_k: int, examples: int) -> Update:
    """Return an update without values, of a client that uses all experts alike."""
    tokens, ones = 2**20, torch.ones(layout.num_layers)
    shape = (layout.num_layers, layout.num_experts)
    counts = torch.full(shape, tokens * top_k // layout.num_experts)
    nothing = Adapter(replace(layout, entries=()), torch.zeros(0))
    report: dict[str, Any] = least_report() | {"examples": examples, "tokens": tokens}
    return Update(0, 0, "", top_k, ones, nothing, counts, **report)


def _at_most_one(strategy: Mean, update: Update, mechanism: Mechanism) -> Weights:
    """Return a client's weights, divided by those of the largest size that counts."""
    most = 1 if strategy.weighting == "uniform" else mechanism.privacy.most_size
    size, weights = strategy.size(update), strategy.weigh(update)
    factor = min(1.0, size / most) / size if size else 0.0
    return Weights((weights.experts * factor).clamp(max=1.0), min(weights.shared * factor, 1.0))

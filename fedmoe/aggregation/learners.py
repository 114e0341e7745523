"""The mean over the clients that trained an expert, where using it is not training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float64, Int
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import SHIFT, Adapter, cut, place
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.streaming import Weights, weighted_mean
from fedmoe.errors import Fault
from fedmoe.messages.records import Task, Update
from fedmoe.section import section


@section
class MeanOfLearners(Mean):
    """Base of means over the clients that say, in their own words, that they trained an expert.

    What they say travels behind the change of the adapter, and is none: `weigh` reads it.
    """

    linear: ClassVar[bool] = False
    maskable: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    per_choice: Annotated[int, Field(ge=1)] = 4
    """Experts of each layer that learn, for each of a tier's `top_k`."""
    experts: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """The same as a number by tier, such as {low: 8}, in place of `per_choice`."""
    router_agreement: bool = False
    """Average a row of trained routers (`adapter.router`) by `agreement`: how far a client's use of
    its expert agrees with all clients' mean."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield budgets of tiers that there are not, and what traits rule out."""
        yield from super().faults(experiment, model)
        if self.router_agreement and not experiment.adapter.router:
            said = "no router is trained that it could average; use adapter.router=true, or false"
            yield Fault("aggregation.router_agreement", said)
        tiers = getattr(experiment.budget, "tiers", {})
        for name in self.experts:
            if tiers and name not in tiers:
                known = ", ".join(tiers)
                yield Fault(f"aggregation.experts.{name}", f"no such tier; the tiers are {known}")

    def learners(self, task: Task) -> int:
        """Return the experts of each layer that learn on a client."""
        return self.experts.get(task.tier, self.per_choice * task.top_k)

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        weights: list[Weights] = []
        routers: list[tuple[Tensor, Adapter]] = []

        def plain() -> Iterator[Update]:
            for update in updates:
                weights.append(self.weigh(update))
                if self.router_agreement:
                    routers.append((update.counts, cut(update.delta, adapter.layout.only(SHIFT))))
                yield replace(update, delta=cut(update.delta, adapter.layout))

        mean = weighted_mean(adapter, plain(), lambda update: weights.pop(0))
        if routers:
            place(aligned(cut(adapter, adapter.layout.only(SHIFT)), routers), mean)
        return mean


def aligned(before: Adapter, clients: list[tuple[Tensor, Adapter]]) -> Adapter:
    """Return routers after the mean of clients' changes by agreement; rows without one stay."""
    omega = agreement(torch.stack([counts for counts, _ in clients]))
    made, deltas = before.copy(), [delta.views() for _, delta in clients]
    for layer, (entry, view) in enumerate(made.layout.views(made.flat)):
        change = torch.stack([delta[entry.name] for delta in deltas]).double()
        view += torch.einsum("ce,ced->ed", omega[:, layer], change)
    return made


def agreement(
    counts: Int[Tensor, "clients layers experts"],
) -> Float64[Tensor, "clients layers experts"]:
    r"""Return each client's share of the mean of every expert's row in the routers.

    $$\omega_c(e) = s_c(e) / \sum_j s_j(e), \qquad
      s_c(e) = \min(f_c(e), \bar f(e)) / \max(f_c(e), \bar f(e))$$

    f the share of a client's choices in a layer that an expert had, $\bar f$ its mean over clients.
    Shares of an expert sum to 1, or are all 0 where nobody chose it.

    Source: FedAlign-MoE (arXiv:2603.21276) weighs by consistency of routing so, from second-hand
    notes; its s is not known to us, and this one is our choice. Sizes do not enter, as there.

    Example:
        >>> agreement(torch.tensor([[[4, 0]], [[2, 2]]])).flatten()
        tensor([0.5294, 0.0000, 0.4706, 1.0000], dtype=torch.float64)
    """
    f = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    mean = f.mean(0)
    s = f.minimum(mean) / f.maximum(mean).where(mean > 0, 1)
    total = s.sum(0)
    return s / total.where(total > 0, 1)

"""The mean over the clients that trained an expert, where using it is not training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fedmoe.adapter import Adapter, cut
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

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield budgets of tiers that there are not, and what traits rule out."""
        yield from super().faults(experiment, model)
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

        def plain() -> Iterator[Update]:
            for update in updates:
                weights.append(self.weigh(update))
                yield replace(update, delta=cut(update.delta, adapter.layout))

        return weighted_mean(adapter, plain(), lambda update: weights.pop(0))

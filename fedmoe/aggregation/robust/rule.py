"""The hooks of a robust rule: how a round's terms become other weights and clipped updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.robust.judgement import Judgement
from fedmoe.aggregation.strategy import Aggregator
from fedmoe.errors import Fault
from fedmoe.messages.records import Update
from fedmoe.section import Component, section

Centre = dict[str, Tensor]
"""A rule's memory of earlier rounds; empty before the first."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The next state by a rule, what it remembers, and what it did to whom."""

    state: Adapter
    centre: Centre
    judgement: Judgement | None = None


class RobustRule(Component):
    """Base of robust rules. A trait claims a law, which the contract suite then tests."""

    name: Any
    withstands: ClassVar[str] = ""
    """Claims what liars cannot do, whatever they send, where there are reporters enough: take more
    than a share of the `weight` with an update of more than a multiple of the median norm; move
    `values` beyond the honest ones'; move the `product` by more than a few honest norms; or move it
    against the `root` update."""
    root: Any = ""
    """File of the server's own rows, of which the rule asks for an update in every round."""
    streams: ClassVar[bool] = False
    """Updates are let go one by one; any other rule keeps all of a round until it has judged."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield a strategy that is no plain mean, whose terms cannot be judged one by one."""
        e = experiment
        if self.streams:
            return
        if why := unfit(e.aggregation):
            yield Fault("robust.name", f"{self.name!r} {why}")
        for name in ("privacy", "secure_aggregation"):
            if getattr(e, name) is not None:
                said = f"judges single updates, which {name} hides or clips itself; leave one out"
                yield Fault("robust.name", f"{self.name!r} {said}")

    def fair(self, sizes: Float[Tensor, " clients"]) -> Float[Tensor, " clients"]:
        """Return the factors up to 1 by which the rule lowers a round's sizes."""
        return torch.ones_like(sizes)

    def combine(
        self,
        strategy: Aggregator,
        state: Adapter,
        updates: Iterable[Update],
        num_clients: int = 0,
        centre: Centre | None = None,
        root: Update | None = None,
    ) -> Outcome:
        """Return the next global state; see `Strategy.combine` for promises and errors.

        Args:
            strategy: whose mean is made robust.
            state: the state before.
            updates: at least one, in the order of client ids.
            num_clients: in the whole federation.
            centre: what the rule remembered of the round before.
            root: the server's own update, where the rule names root rows.
        """
        return Outcome(strategy.combine(state, updates, num_clients), {})


@section
class NoRule(RobustRule):
    """Take the strategy's mean as it is: whoever sends the largest update moves it most."""

    name: Literal["none"] = "none"
    streams: ClassVar[bool] = True


PLAIN = NoRule()


def unfit(strategy: Any) -> str:
    """Return why no rule can wrap a strategy; empty for one that is a mean by weights alone."""
    named = f"aggregation.name {strategy.name!r}"
    if not strategy.linear:
        return f"needs a weighted mean, and {named} is none: its result depends on all together"
    if not isinstance(strategy, Mean) or type(strategy).combine is not Mean.combine:
        return f"changes weights and updates alone, and {named} takes more from clients than both"
    return ""


def steady(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return float64 values, cut to their first 17 significant bits.

    Products of matrices have other last bits with another number of threads. Factors and weights
    that follow from them, cut like this, are the same for all but one in thousands of millions.
    """
    return values.double().view(torch.int64).bitwise_and_(-(1 << 36)).view(torch.float64)

r"""Server optimisers: the round's mean change as a pseudo-gradient, with memory between rounds.

With $\Delta_t$ the change that the strategy proposes (new minus old global adapter):

$$m_t = \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t, \qquad
  x_{t+1} = x_t + \eta \, m_t / (\sqrt{v_t} + \tau), \qquad v_{-1} = \tau^2$$

and $v_t$ is $v_{t-1} + \Delta_t^2$ (Adagrad), $\beta_2 v_{t-1} + (1 - \beta_2) \Delta_t^2$ (Adam)
or $v_{t-1} - (1 - \beta_2) \Delta_t^2 \, \mathrm{sign}(v_{t-1} - \Delta_t^2)$ (Yogi).

Source: Reddi et al. 2020, arXiv:2003.00295, Algorithm 2; momentum: Hsu et al. 2019,
arXiv:1909.06335, $v_t = \beta v_{t-1} + \Delta_t$, $x_{t+1} = x_t + \eta v_t$. Where we differ: a
value that the round did not change (of an expert that nobody used) stays bit-identical, and so does
its memory; sums run in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.section import section

Memory = dict[str, Tensor]
"""What an optimiser keeps between rounds: float64 (parameters,) by name; empty before round 1."""

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@section
class NoOptimizer:
    """Take the strategy's adapter as it is."""

    name: Literal["none"] = "none"

    def step(self, old: Adapter, proposed: Adapter, memory: Memory) -> tuple[Adapter, Memory]:
        """The next global adapter and memory."""
        return proposed, memory


@section
class Momentum:
    """FedAvgM: keep going in the direction of earlier rounds."""

    name: Literal["momentum"] = "momentum"
    learning_rate: Rate = 1.0
    beta: Decay = 0.9

    def step(self, old: Adapter, proposed: Adapter, memory: Memory) -> tuple[Adapter, Memory]:
        """The next global adapter and memory."""
        delta = _delta(old, proposed)
        v = self.beta * memory.get("v", torch.zeros_like(delta)) + delta
        return _moved(old, delta, self.learning_rate * v, memory, {"v": v})


@section
class Adagrad:
    """FedAdagrad: steps shrink where changes have been large."""

    name: Literal["adagrad"] = "adagrad"
    learning_rate: Rate = 0.01
    beta1: Decay = 0.0
    tau: Rate = 1e-3

    def step(self, old: Adapter, proposed: Adapter, memory: Memory) -> tuple[Adapter, Memory]:
        """The next global adapter and memory."""
        return _adaptive(self, old, proposed, memory, lambda v, squared: v + squared)


@section
class Adam:
    """FedAdam: each value's step is normalised by its recent changes."""

    name: Literal["adam"] = "adam"
    learning_rate: Rate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3

    def step(self, old: Adapter, proposed: Adapter, memory: Memory) -> tuple[Adapter, Memory]:
        """The next global adapter and memory."""
        return _adaptive(
            self,
            old,
            proposed,
            memory,
            lambda v, squared: self.beta2 * v + (1 - self.beta2) * squared,
        )


@section
class Yogi:
    """FedYogi: as FedAdam, but the normaliser moves by steps of bounded size."""

    name: Literal["yogi"] = "yogi"
    learning_rate: Rate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3

    def step(self, old: Adapter, proposed: Adapter, memory: Memory) -> tuple[Adapter, Memory]:
        """The next global adapter and memory."""
        return _adaptive(
            self, old, proposed, memory,
            lambda v, squared: v - (1 - self.beta2) * squared * torch.sign(v - squared),
        )  # fmt: skip


ServerOptimizer = Annotated[
    NoOptimizer | Momentum | Adagrad | Adam | Yogi, Field(discriminator="name")
]


def _delta(old: Adapter, proposed: Adapter) -> Tensor:
    return proposed.flat.double() - old.flat.double()


def _adaptive(
    rule: Adagrad | Adam | Yogi, old: Adapter, proposed: Adapter, memory: Memory,
    second: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Adapter, Memory]:  # fmt: skip
    """One step of a rule; `second` makes the new v of the old one and the squared change."""
    delta = _delta(old, proposed)
    before = memory or {"m": torch.zeros_like(delta), "v": torch.full_like(delta, rule.tau**2)}
    m = rule.beta1 * before["m"] + (1 - rule.beta1) * delta
    v = second(before["v"], delta.square())
    change = rule.learning_rate * m / (v.sqrt() + rule.tau)
    return _moved(old, delta, change, before, {"m": m, "v": v})


def _moved(
    old: Adapter, delta: Tensor, change: Tensor, before: Memory, after: Memory
) -> tuple[Adapter, Memory]:
    """Apply `change` and the new memory where the round changed anything."""
    touched = delta != 0
    flat = torch.where(touched, (old.flat.double() + change).float(), old.flat)
    none = torch.zeros_like(delta)
    kept = {name: torch.where(touched, new, before.get(name, none)) for name, new in after.items()}
    return Adapter(old.layout, flat), kept

r"""Server optimisers: the round's mean change as a pseudo-gradient, with memory between rounds.

With $\Delta_t$ the change that the strategy proposes (new minus old global adapter):

$$m_t = \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t, \qquad
  x_{t+1} = x_t + \eta \, m_t / (\sqrt{v_t} + \tau), \qquad v_{-1} = \tau^2$$

and $v_t$ is $v_{t-1} + \Delta_t^2$ (Adagrad), $\beta_2 v_{t-1} + (1 - \beta_2) \Delta_t^2$ (Adam)
or $v_{t-1} - (1 - \beta_2) \Delta_t^2 \, \mathrm{sign}(v_{t-1} - \Delta_t^2)$ (Yogi).

Source: Reddi et al. 2020, arXiv:2003.00295, Algorithm 2; momentum: Hsu et al. 2019,
arXiv:1909.06335, $m_t = \beta m_{t-1} + \Delta_t$, $x_{t+1} = x_t + \eta m_t$. Where we differ: a
value that the round did not change (of an expert that nobody used) stays bit-identical, and so does
its memory; sums run in float64. Strategies that combine products BA take the same rules on
products, in `product_optimizer`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.section import Component, Open, section

Memory = dict[str, Tensor]
"""An optimiser's state between rounds: float64 (parameters,) by name; empty before round 1."""

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizer(Component):
    """Base of server optimisers: the coefficients of the formula above, $v$ included."""

    learning_rate: Any = 1.0
    r"""$\eta$."""

    @property
    def weights(self) -> tuple[float, float]:
        """Return the weight of the old m in the new one, and that of the change."""
        return 0.0, 1.0

    @property
    def first_v(self) -> float:
        """Return v before round 1."""
        return 0.0

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return the new v, of the old one and the squared change; here there is none."""
        return v

    def rate(self, v: Tensor) -> Tensor:
        """Return what m is multiplied with."""
        return torch.full_like(v, self.learning_rate)


Rule = ServerOptimizer


@section
class NoOptimizer(ServerOptimizer):
    """Take the strategy's adapter as it is."""

    name: Literal["none"] = "none"


@section
class Momentum(ServerOptimizer):
    """FedAvgM: keep going in the direction of earlier rounds."""

    name: Literal["momentum"] = "momentum"
    learning_rate: Rate = 1.0
    beta: Decay = 0.9

    @property
    def weights(self) -> tuple[float, float]:
        return self.beta, 1.0


@section
class Adaptive(ServerOptimizer):
    """Base of the rules that divide by the size of recent changes."""

    learning_rate: Rate = 0.01
    beta1: Decay = 0.9
    tau: Rate = 1e-3

    @property
    def weights(self) -> tuple[float, float]:
        return self.beta1, 1 - self.beta1

    @property
    def first_v(self) -> float:
        return self.tau**2

    def rate(self, v: Tensor) -> Tensor:
        return self.learning_rate / (v.sqrt() + self.tau)


@section
class Adagrad(Adaptive):
    """FedAdagrad: steps shrink where changes have been large."""

    name: Literal["adagrad"] = "adagrad"
    beta1: Decay = 0.0

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v + squared


@section
class Adam(Adaptive):
    """FedAdam: each value's step is normalised by its recent changes."""

    name: Literal["adam"] = "adam"
    beta2: Decay = 0.99

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * squared


@section
class Yogi(Adaptive):
    """FedYogi: as FedAdam, but the normaliser moves by steps of bounded size."""

    name: Literal["yogi"] = "yogi"
    beta2: Decay = 0.99

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


SERVER_OPTIMIZERS = Open(
    "fedmoe.server_optimizers",
    ServerOptimizer,
    (NoOptimizer, Momentum, Adagrad, Adam, Yogi),
    server_only=True,
)
"""Components that `server_optimizer` in a configuration may name."""


def step_values(
    rule: Rule, old: Adapter, proposed: Adapter, memory: Memory
) -> tuple[Adapter, Memory]:
    """The next global adapter and memory, value by value."""
    delta = proposed.flat.double() - old.flat.double()
    before = memory or first_memory(rule, delta)
    keep, take = rule.weights
    m = keep * before["m"] + take * delta
    v = rule.second(before["v"], delta.square())
    touched = delta != 0
    flat = torch.where(touched, (old.flat.double() + rule.rate(v) * m).float(), old.flat)
    kept = {name: torch.where(touched, new, before[name]) for name, new in (("m", m), ("v", v))}
    return Adapter(old.layout, flat), kept


def first_memory(rule: Rule, like: Tensor) -> Memory:
    """The memory before round 1, of as many values as `like` has."""
    return {"m": torch.zeros_like(like), "v": torch.full_like(like, rule.first_v)}

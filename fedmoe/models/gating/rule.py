"""The interface of a gating: which tokens reach which experts, in training and outside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.errors import Fault
from fedmoe.section import Component


@dataclass(eq=False)
class Turn:
    """The local round that gates are in: its random stream, and how far the run has come."""

    generator: torch.Generator
    done: float = 0.0
    """Share of the run's steps that are done, 0 to 1."""
    draw: float = 1.0
    """One uniform number per step, the same for all layers."""
    agreement: float | None = None
    """Share of competition's winners that routers had chosen, when it was last held."""
    overlaps: list[float] = field(default_factory=list)
    """The same of each layer in the present step."""

    def begin(self, done: float) -> None:
        """Begin a step."""
        self.settled()
        self.done = done
        self.draw = float(torch.rand((), generator=self.generator))

    def settled(self) -> float | None:
        """The agreement, with what the step that has ended tells of it."""
        if self.overlaps:
            self.agreement = sum(self.overlaps) / len(self.overlaps)
            self.overlaps = []
        return self.agreement


@dataclass(frozen=True, eq=False)
class Call:
    """One forward pass through one router."""

    hidden: Tensor
    """(tokens, hidden): what the router saw."""
    logits: Tensor
    """(tokens, experts)."""
    top_k: int
    """The budget: experts per token."""
    valid: Tensor | None
    """bool (tokens,): False at padding; None where there is none."""
    turn: Turn | None
    """None outside training."""
    noise: Tensor | None
    """(experts, hidden): what a gating trains beside the router; see `Rule.trains_noise`."""
    respond: Callable[[], Tensor]
    """The size of every expert's answer to every token, (tokens, experts), without a gradient."""

    @property
    def num_experts(self) -> int:
        return self.logits.shape[-1]

    def shares(self) -> Tensor:
        """The softmax of the logits, float32 (tokens, experts), without a gradient."""
        return torch.softmax(self.logits.detach(), dim=-1, dtype=torch.float)


@dataclass(frozen=True, eq=False)
class Choice:
    """The answer to a call; the losses read what else there is."""

    logits: Tensor
    """(tokens, experts): from which the weights follow."""
    index: Tensor
    """int64 (tokens, slots): chosen experts; the number of experts means "none"."""
    clean: Tensor | None = None
    """(tokens, experts): the logits before noise."""
    spread: Tensor | None = None
    """(tokens, experts): the noise's standard deviation."""
    responses: Tensor | None = None
    """(tokens, experts): by which competition chose."""


class Rule(Component):
    """Base of all gatings; its defaults are those of the model's own top-k."""

    own: ClassVar[bool] = False
    """The router is left as it is."""
    serves: ClassVar[bool] = True
    """It also chooses outside training; else evaluation uses the router's own top-k."""
    exact_counts: ClassVar[bool] = True
    """Every token reaches exactly k experts of a layer."""
    noisy: ClassVar[bool] = False
    """It chooses by noisy logits in training, and records the noise (`Choice.spread`)."""
    teaches_routers: ClassVar[bool] = False
    """It has no meaning while routers are frozen."""

    @property
    def trains_noise(self) -> bool:
        """True if each router gets a second trained matrix of the same shape as its weight."""
        return False

    @property
    def losses(self) -> Sequence[tuple[float, Callable[[Any], Tensor]]]:
        """Weighted losses of its own, each a function of one layer's `Routed`."""
        return ()

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield a fault for routers that are frozen though they are to be taught."""
        if self.teaches_routers and not experiment.adapter.router:
            yield Fault(
                "gating.name",
                f"{self.name!r} teaches routers, which are frozen; set adapter.router",
            )

    def per_token(self, top_k: int) -> tuple[float, float]:
        """The least and the most experts that a token reaches in a layer, on average."""
        return float(top_k), float(top_k)

    def misfit(self, num_experts: int, full_top_k: int) -> str | None:
        """Return why it does not fit a model of so many experts, of which K are chosen, or None."""
        return None

    def choose(self, call: Call) -> Choice | None:
        """Return which experts each token reaches; None leaves it to the router."""
        raise NotImplementedError


def weigh(choice: Choice, renormalise: bool) -> Tensor:
    r"""The weights (tokens, slots) that a softmax router's own rule gives for a choice.

    $w_{tj} = p_{t,i_j}$ with $p = \mathrm{softmax}(\text{logits})$ over all experts; where the
    model renormalises, divided by their sum. An empty slot weighs 0, and so does all of a token
    that no expert took.
    """
    shares = torch.softmax(choice.logits, dim=-1, dtype=torch.float)
    chosen = F.pad(shares, (0, 1)).gather(-1, choice.index)
    if renormalise:
        total = chosen.sum(-1, keepdim=True)
        chosen = chosen / torch.where(total > 0, total, torch.ones_like(total))
    return chosen


def keep_first(index: Tensor, kept: Tensor, num_experts: int) -> Tensor:
    """`index` with the slots that are not `kept` (tokens, slots) emptied."""
    return index.masked_fill(~kept, num_experts)

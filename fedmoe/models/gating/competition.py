"""Competition: in some training steps experts win tokens by how strongly they respond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmoe.models.gating.gate import Routed
from fedmoe.models.gating.rule import Call, Choice, Rule, Turn
from fedmoe.section import section


@section
class CompetitionGating(Rule):
    r"""In a share of the training steps, tokens go to the experts of the strongest responses.

    In such a step every expert answers every token, and the k of the largest
    $r_i = \lVert E_i(x) \rVert_2$ are chosen; the router learns to foresee that, by adding to the
    loss `distil` times

    $$\frac{1}{E} \sum_i (s^R_i - s^C_i)^2 + \frac{\alpha}{k} \sum_{i \in chosen}
      (s^R_i - s^C_i)^2, \quad s^R = \mathrm{softmax}(x W), \quad s^C_i = r_i / \sum_j r_j$$

    in the mean over tokens and layers. In all other steps, and outside training, the router
    chooses. Whether a step competes is one draw against $\lambda$, from (seed, round, client):
    with `schedule: linear` it goes from `first` to `last` over the run; with `learned` it is
    `first` in a local round's first step and then `first` times the share of winners that routers
    missed in the last competition, but at least `last`: as routers learn, it ends by itself.

    A competing step costs a forward pass with all E experts, which a budget's k does not price; no
    activations of it are kept. It asks for `adapter.router: true`.

    Source: CompeteSMoE (Pham et al. 2024, arXiv:2402.02526); the distillation as in its later
    version (arXiv:2505.13380), both from second-hand notes. Ours: the chosen are weighed by the
    router's own rule, because frozen experts were trained with it; the schedules; and shares of the
    responses, of which the paper takes a softmax: of norms in the tens that is one winner and
    zeros, and a router that had learnt it would rank all other winners below the losers.
    """

    name: Literal["competition"] = "competition"
    serves: ClassVar[bool] = False
    teaches_routers: ClassVar[bool] = True
    schedule: Literal["linear", "learned"] = "linear"
    """The course of the share of competing steps over the run."""
    first: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of competing steps at the start."""
    last: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of competing steps at the end, or the least of `learned`."""
    distil: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Weight of the loss by which the router learns the outcome."""
    winners: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """The alpha: extra weight of the winners in it."""

    @property
    def losses(self) -> Sequence[tuple[float, Callable[[Routed], Tensor]]]:
        """The distillation, where it has a weight."""
        return [(self.distil, partial(distillation, winners=self.winners))] if self.distil else []

    def share(self, turn: Turn) -> float:
        """The lambda: probability that the step competes."""
        if self.schedule == "linear":
            return self.first + (self.last - self.first) * turn.done
        missed = 1.0 if turn.agreement is None else 1 - turn.agreement
        return max(self.last, self.first * missed)

    def choose(self, call: Call) -> Choice | None:
        turn = call.turn
        if turn is None or turn.draw >= self.share(turn):
            return None
        responses = call.respond()
        index = responses.topk(call.top_k, dim=-1).indices
        turn.overlaps.append(overlap(call, index))
        return Choice(call.logits, index, responses=responses)


def overlap(call: Call, index: Tensor) -> float:
    """The share of the winners in `index` (tokens, k) that the router itself had chosen."""
    own = call.logits.topk(call.top_k, dim=-1).indices
    both = (own.unsqueeze(-1) == index.unsqueeze(-2)).any(-2).float().mean(-1)
    return float((both if call.valid is None else both[call.valid]).mean())


def distillation(routed: Routed, winners: float) -> Tensor:
    """Return what the router has yet to learn of a layer, a scalar; see `CompetitionGating`.

    0 in a step without competition.
    """
    choice = routed.choice
    if choice is None or choice.responses is None:
        return routed.logits.sum() * 0.0
    goal = F.normalize(choice.responses, p=1, dim=-1)
    error = (torch.softmax(routed.logits.float(), -1) - goal).square()
    won = error.gather(-1, choice.index).mean(-1)
    return (error.mean(-1) + winners * won).mean()

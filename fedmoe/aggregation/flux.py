"""FLUX: each client tunes the experts that its data gain most from, and tries out some others."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut, keep_untouched
from fedmoe.aggregation.learners import MeanOfLearners
from fedmoe.aggregation.narrow_backward import ChosenBackward
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import Weights
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

TUNED = "tuned"


@section
class FLUX(MeanOfLearners):
    r"""Choose the experts that a client tunes by what they promised it; average over tuners.

    $$u_e = |D_e| \sqrt{\frac1S \sum_s \| \nabla_e^{(s)} \|^2}$$

    over the S steps of the client's last round in which it tuned expert e, $D_e$ that round's
    tokens that reached it. In each layer, of `per_choice` * k_c roles, a share `exploit` goes to
    the experts with the largest u, which for budgets of single clients is the largest sum; the
    others go to those whose u is the oldest, first of all unknown. Experts without a role compute
    and have no gradient. A client keeps u and says what it tuned; an expert's mean is over those
    clients, by size. Utilities are stale by design: a round begins with those of earlier ones, so
    that no client waits for a profile.

    Source: arXiv:2508.19078, from second-hand notes (no public code). Not as there: explorers
    really train (there: gradients from forward passes alone), the oldest is tried out (there:
    drawn), gradient norms are of steps and not of examples, and each layer has as many roles.
    Experts without a role are not clustered by PCA and k-means into several merged ones within a
    budget by layer: `budget.tiers.*.subset` with `left_out: merge` makes one of those that a client
    does not hold, and profiles in int4. Unused roles save no traffic: zeros of used experts travel.
    """

    name: Literal["flux"] = "flux"
    corrects: ClassVar[bool] = True
    exploit: Annotated[float, Field(ge=0, le=1)] = 0.75
    """The epsilon: share of the roles that go to the largest utilities; the rest explores."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        kept = [("utilities", (2, plain.num_layers, plain.num_experts), None)]
        own = Layout.of([*kept], plain.num_layers, plain.num_experts, 1, 1.0)
        said = plain.plus(
            [(f"{x}.{TUNED}", (plain.num_experts,), None) for x in plain.expert_paths]
        )
        return Layouts(plain, plain, plain, said, own)

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Tuner(layouts, task, own, self)

    def reach(self, task: Task, moved: float) -> tuple[float, int]:
        """Return the bound on changes, and how many values say what was tuned: yes or no each."""
        layout = task.adapter.layout
        return moved, len(layout.expert_paths) * layout.num_experts

    def weigh(self, update: Update) -> Weights:
        """Return n for experts that the client tuned, and for shared parts."""
        layout, n = update.delta.layout, self.size(update)
        tuned = cut(update.delta, layout.only(TUNED)).flat.view(-1, layout.num_experts) > 0.5
        return Weights(n * (tuned & (update.counts > 0)).double(), n)


class Tuner(Local):
    """A client that tunes the experts with a role, and measures what they gain."""

    def __init__(self, layouts: Layouts, task: Task, own: Adapter | None, settings: FLUX) -> None:
        super().__init__(layouts, task.adapter)
        assert layouts.own is not None
        shape = layouts.own.entries[0].shape
        known = torch.zeros(shape) if own is None else own.flat.view(shape).clone()
        self.utility, self.measured = known
        self.round = task.round
        number = settings.learners(task)
        turn = (task.round - 1) * number + task.client
        chosen = roles(self.utility, self.measured, number, settings.exploit, turn)
        self.backward = ChosenBackward(chosen)
        self.squares, self.steps = torch.zeros(chosen.shape), 0

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        """Measure gradients, which stay as they are."""
        self.squares, self.steps = self.squares.to(grad.device), self.steps + 1
        for entry, view in self.layouts.trained.views(grad):
            if entry.layer is not None:
                self.squares[entry.layer] += view.flatten(1).square().sum(1)

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        assert self.backward is not None
        assert self.layouts.own is not None
        self.backward.to(torch.device("cpu"))
        learnt, tuned = self.backward.learnt, self.backward.learnt > 0
        found = learnt * (self.squares.cpu() / max(1, self.steps)).sqrt()
        # Chosen and reached by no token is measured, too: it gains nothing here.
        assert isinstance(self.backward, ChosenBackward)
        chosen = self.backward.chosen
        self.utility = torch.where(chosen, found.float(), self.utility)
        self.measured = self.measured.masked_fill(chosen, float(self.round))
        self.own = Adapter(self.layouts.own, torch.stack([self.utility, self.measured]).flatten())
        moved = keep_untouched(after - self.before, learnt)
        return Adapter(self.layouts.update, torch.cat([moved.flat, tuned.float().flatten()]))


def roles(
    utility: Tensor, measured: Tensor, number: int, exploit: float, turn: int
) -> Bool[Tensor, "layers experts"]:
    """Return the experts of each layer that a client tunes.

    Args:
        utility: (layers, experts), by what the client last measured.
        measured: the rounds in which it did; 0 for never.
        number: of each layer's experts that it tunes.
        exploit: share of them that have the largest utilities.
        turn: where among equally old experts the others are looked for first.

    Example:
        >>> seen = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
        >>> roles(torch.tensor([[5.0, 9.0, 0.0, 0.0]]), seen, 2, exploit=0.5, turn=3)
        tensor([[False,  True, False,  True]])
    """
    total = utility.shape[1]
    number = min(number, total)
    best = utility.masked_fill(measured == 0, 0.0)
    order = best.sort(dim=1, descending=True, stable=True)
    first = torch.arange(total).expand_as(order.indices) < int(exploit * number)
    chosen = torch.zeros_like(utility, dtype=torch.bool)
    chosen.scatter_(1, order.indices, first & (order.values > 0))
    waiting = (torch.arange(total) - turn) % total + total * measured
    oldest = waiting.masked_fill(chosen, torch.inf).argsort(dim=1, stable=True)
    for layer, ranks in enumerate(oldest):
        chosen[layer, ranks[: number - int(chosen[layer].sum())]] = True
    return chosen

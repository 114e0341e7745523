"""FLUX: each client tunes the experts that its data gain most from, and tries out some others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
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

    $$u_e = |D_e| \sqrt{\frac{1}{S_e} \sum_s \| \nabla_e^{(s)} \|^2}$$

    over the steps of the client's last round in which it tuned expert e, $S_e$ of which had one of
    the $D_e$ tokens that reached it. Of `per_choice` * k_c roles a layer, shared out over layers by
    `spread`, a share `exploit` goes to the experts with the largest u, which for budgets of single
    clients is the largest sum; the others go to those whose u is the oldest, first of all unknown.
    Experts without a role compute and have no gradient. A client keeps u and says what it tuned; an
    expert's mean is over those clients, by size. Utilities are stale by design: a round begins with
    those of earlier ones, so that no client waits for a profile.

    Source: arXiv:2508.19078, from second-hand notes (no public code). Not as there:

    - Explorers really train. There they estimate gradients from forward passes alone, which would
      need a loss with a changed weight for every expert that is tried.
    - The oldest is tried out (there: drawn), and gradient norms are of steps and not of examples.
    - Experts without a role are not clustered by PCA and k-means into several merged ones. Those
      save memory of frozen weights, which is a client's form and no strategy's here:
      `budget.tiers.*.subset` with `left_out: merge` makes one of all that a client does not hold,
      by what it activates, and profiles in int4. FLUX does not tell it which to hold.
    - Unused roles save no traffic: zeros of used experts travel.
    """

    name: Literal["flux"] = "flux"
    corrects: ClassVar[bool] = True
    exploit: Annotated[float, Field(ge=0, le=1)] = 0.75
    """The epsilon: share of the roles that go to the largest utilities; the rest explores."""
    spread: Literal["even", "utility", "activation"] = "even"
    """How a client's roles are shared out over layers: `even`, as many in each; `utility`, wherever
    u is largest in the whole model; `activation`, by `roles_by_layer` of how often the client's
    last round chose each expert, which is the source's budget for merged experts, not for tuned."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        rows = 3 if self.spread == "activation" else 2
        kept = [("utilities", (rows, plain.num_layers, plain.num_experts), None)]
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
        self.utility, self.measured, *used = known
        self.round = task.round
        number = settings.learners(task)
        turn = (task.round - 1) * number + task.client
        numbers, rows = [number] * shape[1], known[:2]
        if used and self.measured.any():
            numbers = roles_by_layer(used[0], sum(numbers))
        if settings.spread == "utility":  # as if all experts were of one layer
            numbers, rows = [sum(numbers)], rows.view(2, 1, -1)
        chosen = roles(*rows, numbers, settings.exploit, turn).view(shape[1:])
        self.backward = ChosenBackward(chosen)
        self.squares, self.steps = torch.zeros(chosen.shape), torch.zeros(chosen.shape)

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        """Measure gradients, which stay as they are."""
        self.squares = self.squares.to(grad.device)
        self.steps = self.steps.to(counts.device) + (counts > 0)
        for entry, view in self.layouts.trained.views(grad):
            if entry.layer is not None:
                self.squares[entry.layer] += view.flatten(1).square().sum(1)

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        assert self.backward is not None
        assert self.layouts.own is not None
        self.backward.to(torch.device("cpu"))
        learnt, tuned = self.backward.learnt, self.backward.learnt > 0
        found = learnt * (self.squares.cpu() / self.steps.cpu().clamp(min=1)).sqrt()
        # Chosen and reached by no token is measured, too: it gains nothing here.
        assert isinstance(self.backward, ChosenBackward)
        chosen = self.backward.chosen
        self.utility = torch.where(chosen, found.float(), self.utility)
        self.measured = self.measured.masked_fill(chosen, float(self.round))
        used = counts / counts.sum(1, keepdim=True).clamp(min=1)
        kept = [self.utility, self.measured, used][: self.layouts.own.entries[0].shape[0]]
        self.own = Adapter(self.layouts.own, torch.stack(kept).flatten())
        moved = keep_untouched(after - self.before, learnt)
        return Adapter(self.layouts.update, torch.cat([moved.flat, tuned.float().flatten()]))


def roles_by_layer(frequencies: Float[Tensor, "layers experts"], total: int) -> list[int]:
    r"""Return how many of `total` roles each layer has: more in early and in evenly used layers.

    $$B(l) = \Big\lfloor B \, b_l / \sum_j b_j \Big\rfloor, \qquad b_l = (L - l + 1) / v_l$$

    for layers l = 1 ... L, B the total, v the variance of a layer's activation frequencies, at
    least 1e-4 / E^2. No layer has more roles than its E experts: what is over goes to the others
    by the same rule. What rounding leaves is given to none.

    Source: FLUX (arXiv:2508.19078), from second-hand notes; the bounds are ours.

    Example:
        >>> uneven, even = [0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.2, 0.2]
        >>> roles_by_layer(torch.tensor([uneven, even, even]), 6)
        [0, 3, 1]
    """
    layers, experts = frequencies.shape
    v = frequencies.double().var(1, correction=0).clamp(min=1e-4 / experts**2)
    b = torch.arange(layers, 0, -1) / v
    given = torch.zeros(layers, dtype=torch.float64)
    while True:
        free = given < experts
        share = (total - given[~free].sum()) * b / b[free].sum()
        if not (full := free & (share >= experts)).any():
            break
        given[full] = experts
    return [int(n) for n in torch.where(free, share + 1e-9, given).floor()]


def roles(
    utility: Float[Tensor, "layers experts"],
    measured: Float[Tensor, "layers experts"],
    numbers: Sequence[int],
    exploit: float,
    turn: int,
) -> Bool[Tensor, "layers experts"]:
    """Return the experts of each layer that a client tunes.

    Args:
        utility: by what the client last measured.
        measured: the rounds in which it did; 0 for never.
        numbers: of experts that it tunes, by layer.
        exploit: share of them that have the largest utilities.
        turn: where among equally old experts the others are looked for first.

    Example:
        >>> seen = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
        >>> roles(torch.tensor([[5.0, 9.0, 0.0, 0.0]]), seen, [2], exploit=0.5, turn=3)
        tensor([[False,  True, False,  True]])
    """
    total = utility.shape[1]
    number = torch.tensor(numbers).clamp(max=total)
    best = utility.masked_fill(measured == 0, 0.0)
    order = best.sort(dim=1, descending=True, stable=True)
    first = torch.arange(total) < (exploit * number.double()).long().unsqueeze(1)
    chosen = torch.zeros_like(utility, dtype=torch.bool)
    chosen.scatter_(1, order.indices, first & (order.values > 0))
    waiting = (torch.arange(total) - turn) % total + total * measured
    oldest = waiting.masked_fill(chosen, torch.inf).argsort(dim=1, stable=True)
    for layer, left in enumerate((number - chosen.sum(1)).tolist()):
        chosen[layer, oldest[layer, :left]] = True
    return chosen

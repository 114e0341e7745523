"""HFedMoE: all chosen experts compute, the most important ones learn, and learners are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import SHIFT, Adapter, Layout, cut, keep_untouched, place
from fedmoe.aggregation.learners import MeanOfLearners
from fedmoe.aggregation.narrow_backward import NarrowBackward
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import Weights
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

RECORD = "record"


@section
class HFedMoE(MeanOfLearners):
    r"""Forward through all chosen experts, backward through the C most important of a micro-batch.

    `NarrowBackward` has the importance s. A client says which experts it trained in the round, in
    its own words and not by counts: an expert that was used need not have learnt. With
    $u_c(e) = \frac1T \sum_i G_e(x_i)$ over the round's T tokens an expert's mean is over the
    clients that trained it and have $u_c(e) \ge \tau$, by size $n_c$; nobody: it stays. Trained
    routers (`adapter.router`) are averaged by

    $$\alpha_c = \frac{1}{|S_c|} \sum_{e \in S_c} u_c(e) \, s_c(e)$$

    over the experts S_c of all layers that count so, s_c the mean over micro-batches, u and s held
    to 0 ... 1; or by `router_agreement`. Other shared parts are by n_c.

    Source: arXiv:2601.00583, eq. 1-21, from second-hand notes (no public code). Its alpha is not
    normalised, ours is. It lets all clients compute with the model's K; here a tier's `top_k`
    counts, so that with a `top_k` of K in every tier, and `experts` by tier, it is as there. The
    constants, the budget C and the record's form are our choice. Gradients and what is saved for
    them are really left out; the costs that a run tells in advance are those of all experts.
    """

    name: Literal["hfedmoe"] = "hfedmoe"
    size_weighted: ClassVar[bool] = False
    mean_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The lambda of s: 1 looks at an expert's mean weight alone, 0 at its largest."""
    surprise: Annotated[float, Field(ge=0)] = 0.0
    """The beta of s: how much an expert loses whose weights are far from even ones."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The tau: the least mean weight of an expert on a client that counts for it."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        return Layouts(task=plain, model=plain, trained=plain, update=_with_record(plain))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Learner(layouts, task, self)

    def reach(self, task: Task, moved: float) -> tuple[float, int]:
        """The record is no change; its values are held to their range where they are used."""
        layout = task.adapter.layout
        return moved, 3 * len(layout.expert_paths) * layout.num_experts

    def weigh(self, update: Update) -> Weights:
        """Return n for experts that the client trained and used enough, and for shared parts."""
        n, (u, _, trained) = self.size(update), _record(update)
        return Weights(n * (trained & (u >= self.threshold)).double(), n)

    def router_weight(self, update: Update) -> float:
        """Return the alpha of a client."""
        u, s, trained = _record(update)
        counts = trained & (u >= self.threshold)
        return float((u * s)[counts].sum() / counts.sum().clamp(min=1))

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        if self.router_agreement:
            return super().combine(adapter, updates, num_clients)
        routers = adapter.layout.only(SHIFT)
        moved, total = torch.zeros(routers.size, dtype=torch.float64), 0.0

        def watched() -> Iterator[Update]:
            nonlocal total
            for update in updates:
                alpha = self.router_weight(update)
                moved.add_(cut(update.delta, routers).flat, alpha=alpha)
                total += alpha
                yield update

        mean = super().combine(adapter, watched(), num_clients)
        before = cut(adapter, routers).flat
        after = (before + moved / total).float() if total else before
        place(Adapter(routers, after), mean)
        return mean


class Learner(Local):
    """A client that trains the experts that matter most to its micro-batches."""

    def __init__(self, layouts: Layouts, task: Task, settings: HFedMoE) -> None:
        super().__init__(layouts, task.adapter)
        model = layouts.model
        most = settings.learners(task)
        shape = model.num_layers, model.num_experts
        self.backward = NarrowBackward(*shape, most, settings.mean_share, settings.surprise)

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        seen = self.backward
        assert isinstance(seen, NarrowBackward)
        seen.to(torch.device("cpu"))
        # Weight decay would move an expert that never learnt.
        moved = keep_untouched(after - self.before, seen.learnt)
        u = seen.weights / seen.tokens.clamp(min=1).unsqueeze(1)
        s = seen.importance / seen.batches.clamp(min=1).unsqueeze(1)
        record = torch.stack([u, s, (seen.learnt > 0).double()], 1)
        return Adapter(self.layouts.update, torch.cat([moved.flat, record.float().flatten()]))


def _record(update: Update) -> tuple[Float[Tensor, "layers experts"], Tensor, Tensor]:
    """Return what a client says of its experts: u, s, and bool: whether it trained them."""
    layout = update.delta.layout
    record = cut(update.delta, layout.only(RECORD)).flat.double().view(-1, 3, layout.num_experts)
    u, s, trained = record.clamp(0, 1).unbind(1)
    return u, s, (trained > 0.5) & (update.counts > 0)


def _with_record(plain: Layout) -> Layout:
    shape = 3, plain.num_experts
    return plain.plus([(f"{path}.{RECORD}", shape, None) for path in plain.expert_paths])

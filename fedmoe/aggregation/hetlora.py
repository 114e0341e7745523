"""HetLoRA: clients of unlike ranks, padded with zeros and weighted by the norm of their product."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, components, cut, resized
from fedmoe.aggregation.products import pairs
from fedmoe.aggregation.strategy import Layouts, Local, Strategy
from fedmoe.aggregation.streaming import Weights, weighted_mean
from fedmoe.messages.records import Task, Update
from fedmoe.section import section


@section
class HetLoRA(Strategy):
    r"""Cut to the client's rank, pad with zeros, weigh by the size of the client's product.

    $$\gamma_c = \| s_c B_c A_c \|_F = s_c \sqrt{\mathrm{tr}(A_c^T B_c^T B_c A_c)}, \qquad
      W \leftarrow \sum_c \gamma_c \, \mathrm{pad}(W_c) \,/\, \sum_c \gamma_c$$

    over all weights of a client together. Locally the tail, from component `decay * r` on, is
    pulled to zero by $\lambda \|B_{tail}\| \|A_{tail}\|$; a client whose tail shrank in a round
    drops it for good. Of an expert, only the clients that used it are averaged. What low-rank
    clients lack counts as zero: the components of high rank are diluted, as in the source. There is
    no choice of a `weighting`: the norm is the weight.

    Padding with zeros kills a component that none of an expert's clients of a round holds: its row
    of A and its column of B become 0, and so do both gradients for ever. Here the row of A stays
    then, so that the component can be trained again; `kills` is the source to the letter.

    Source: Cho et al. 2024 (arXiv:2401.06432, sec. 3.2). Its constants are not known to us: the
    defaults are our choice.
    """

    name: Literal["hetlora"] = "hetlora"
    corrects: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True
    regularisation: Annotated[float, Field(ge=0)] = 1e-3
    """The lambda of the tail."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Share of its components that a client keeps when it drops its tail; 1 never drops."""
    kills: bool = False
    """Let a component that no client of a round holds die, rather than keep its row of A."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        own = Layout.of([("rank", (1,), None)], plain.num_layers, plain.num_experts, 1, 1.0)
        return Layouts(plain, plain, plain, plain, own)

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        rank = layouts.model.rank if own is None else int(own.flat)
        return Tail(layouts, task.adapter, rank, self.decay, self.regularisation)

    def reach(self, task: Task, moved: float) -> tuple[float, int]:
        """A component that a client drops changes by all that was sent of it."""
        return moved + task.adapter.largest(), 0

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        def padded() -> Iterator[Update]:
            for update in updates:
                layout = update.delta.layout
                after = resized(adapter, layout) + update.delta
                norms.append(product_norm(after))
                whole = resized(after, adapter.layout)
                yield replace(update, delta=whole - adapter)

        norms: list[float] = []

        def weigh(update: Update) -> Weights:
            norm = norms.pop(0)
            return Weights((update.counts > 0).double() * norm, norm)

        mean = weighted_mean(adapter, padded(), weigh)
        if not self.kills:
            for (entry, new), (_, old) in zip(
                mean.layout.views(mean.flat), adapter.layout.views(adapter.flat), strict=True
            ):
                if entry.kind == "A":
                    left, had = (x.norm(dim=-1, keepdim=True) for x in (new, old))
                    # A mean of zeros is zero within rounding.
                    new.copy_(torch.where(left <= 1e-9 * had, old, new))
        return mean


class Tail(Local):
    """A client that gives up components that it does not need."""

    def __init__(
        self, layouts: Layouts, sent: Adapter, rank: int, decay: float, strength: float
    ) -> None:
        small = layouts.model.with_rank(rank, layouts.model.scale)
        super().__init__(layouts, resized(cut(sent, small), layouts.model))
        self.sent, self.rank, self.strength = sent, rank, strength
        self.kept = max(1, int(decay * rank))

    def tail(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The tails of all pairs, (A, B), as views."""
        views = {
            e.name: components(e, view, self.kept, self.rank - self.kept)
            for e, view in self.layouts.model.views(flat)
            if e.rank_axis is not None
        }
        return [(views[pair.A], views[pair.B]) for pair in pairs(self.layouts.model)]

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        if self.kept == self.rank or not self.strength:
            return
        for (grad_a, grad_b), (a, b) in zip(self.tail(grad), self.tail(theta), strict=True):
            norm_a, norm_b = (
                torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (a, b)
            )
            grad_a += self.strength * norm_b / norm_a.clamp(min=1e-12) * a
            grad_b += self.strength * norm_a / norm_b.clamp(min=1e-12) * b

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        assert self.layouts.own is not None
        before = self._size(self.before.flat)
        shrank = self.kept < self.rank and self._size(after.flat) < before
        rank = self.kept if shrank else self.rank
        self.own = Adapter(self.layouts.own, torch.tensor([float(rank)]))
        return after - self.sent

    def _size(self, flat: Tensor) -> float:
        return float(sum(a.norm().double() * b.norm().double() for a, b in self.tail(flat)))


def product_norm(adapter: Adapter) -> float:
    r"""$\|s B A\|_F$ over all weights, from the r by r products $B^T B$ and $A A^T$."""
    views, total = adapter.views(), 0.0
    for pair in pairs(adapter.layout):
        a, b = views[pair.A].double(), views[pair.B].double()
        total += float(((b.mT @ b) * (a @ a.mT)).sum())
    return adapter.layout.scale * max(total, 0.0) ** 0.5

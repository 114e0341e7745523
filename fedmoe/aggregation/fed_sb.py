"""Fed-SB: a small square matrix between two fixed bases is all that is trained and sent."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Entry, Layout
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.messages.records import Task
from fedmoe.section import section
from fedmoe.seeds import generator


@section
class FedSB(Mean):
    r"""Train `R` (r, r) of `B_0 R A_0`; the bases are orthogonal and the same for all clients.

    $$\textstyle\sum_c p_c \, B_0 R_c A_0 = B_0 \big(\sum_c p_c R_c\big) A_0$$

    The mean is exact, and a message holds r^2 values a matrix. The bases follow from the run's
    seed; the columns of `B_0` have length sqrt(out), so that learning rates mean what they do in
    LoRA. Trained routers are sent as well.

    Source: Singhal et al. 2025 (arXiv:2502.15436). Theirs takes the bases from the SVD of an
    averaged first gradient; ours are random: no data is touched before round 1.
    """

    name: Literal["fed_sb"] = "fed_sb"
    warm: ClassVar[Literal["sent", "here", "never"]] = "never"
    exact: ClassVar[bool] = True

    def layouts(self, plain: Layout, round: int) -> Layouts:
        small = _small(plain)
        return Layouts(task=small, model=plain, trained=small, update=small)

    def first_state(self, initial: Adapter) -> Adapter:
        layout = _small(initial.layout)
        return Adapter(layout, torch.zeros(layout.size))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Between(layouts, task.adapter, bases(initial))


class Between(Local):
    """A client that trains what lies between the bases."""

    def __init__(self, layouts: Layouts, sent: Adapter, fixed: Adapter) -> None:
        self.layouts, self.own, self.before, self.whole = layouts, None, sent, False
        self.fixed = fixed.views()
        self.start = fixed.copy()
        self.write(sent, self.start)

    def write(self, theta: Adapter, model: Adapter) -> None:
        """`A = A_0`, `B = B_0 R`."""
        into = model.views()
        for entry, value in theta.layout.views(theta.flat):
            if entry.kind == "R":
                into[_with(entry, "B")].copy_(self._basis(entry, value.device) @ value)
            else:
                into[entry.name].copy_(value)

    def pull(self, grad: Adapter) -> Adapter:
        """The gradient of R is `B_0^T` times that of `B`."""
        found, layout = grad.views(), self.layouts.trained
        made = Adapter(layout, grad.flat.new_empty(layout.size))
        for entry, value in layout.views(made.flat):
            if entry.kind == "R":
                basis = self._basis(entry, value.device)
                value.copy_(basis.mT @ found[_with(entry, "B")])
            else:
                value.copy_(found[entry.name])
        return made

    def _basis(self, entry: Entry, device: torch.device) -> Tensor:
        return self.fixed[_with(entry, "B")].to(device)


@lru_cache(maxsize=2)
def bases(initial: Adapter) -> Adapter:
    """Orthogonal columns of length sqrt(out) for every `B`, orthonormal rows for every `A`."""
    seed = int(initial.digest()[:15], 16)  # what the run's seed was made into
    made = Adapter(initial.layout, torch.zeros_like(initial.flat))
    for entry, view in made.layout.views(made.flat):
        if entry.rank_axis is not None:
            normal = torch.randn(entry.shape, generator=generator(seed, "fed_sb", entry.name))
            tall = normal.mT if entry.kind == "A" else normal
            q = torch.linalg.qr(tall)[0]
            # A step of R then moves `B_0 R` about as far as the same step of LoRA moves `B`.
            view.copy_(q.mT if entry.kind == "A" else q * tall.shape[-2] ** 0.5)
    return made


def _small(plain: Layout) -> Layout:
    tensors = []
    for e in plain.entries:
        if e.kind == "B":
            shape = (*e.shape[:-2], plain.rank, plain.rank)
            tensors.append((_with(e, "R"), shape, e.layer))
        elif e.kind != "A":
            tensors.append((e.name, e.shape, e.layer))
    return Layout.of(tensors, plain.num_layers, plain.num_experts, plain.rank, plain.alpha)


def _with(entry: Entry, kind: str) -> str:
    """The name of the same weight's other factor."""
    return f"{entry.name.rpartition('.')[0]}.{kind}"

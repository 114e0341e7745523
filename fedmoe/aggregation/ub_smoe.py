"""UB-SMoE: routers are nudged towards underused experts; idle experts learn from busy ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import Weights, weighted_mean
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

PHI = "phi"


@section
class UBSMoE(Mean):
    r"""A3SMoE's weights, router modulation, and pseudo-gradients.

    Among a token's 2 K best experts by affinity s, the k_c with the largest $s_i + \phi_i$ are
    chosen. The server moves phi towards experts that are used less than the mean:

    $$u_i = \sum_c p_c \frac{a_{ci}}{S_c}, \quad u^* = \frac{\bar k}{E}, \quad
      \phi_i \leftarrow \mathrm{clip}\big(\zeta \phi_i + (1 - \zeta)
      \tanh(u^* / (u_i + \epsilon) - 1),\ \phi_{min},\ \phi_{max}\big)$$

    An expert that no token of a step reached takes a share of the mean gradient of those that
    were: $g_i = \rho_c \sum_j \pi_j g_j$, with $\pi_j$ expert j's share of the step's tokens and
    $\rho_c$ = `pseudo_gradient` / k_c. Of an expert that the whole round left idle nothing is sent.

    Source: arXiv:2605.16690, from second-hand notes. Its pseudo-gradient is not known exactly: this
    form is ours, and off by default. Its penalty on phi is replaced by the clipping.
    """

    name: Literal["ub_smoe"] = "ub_smoe"
    corrects: ClassVar[bool] = True
    maskable: ClassVar[bool] = False
    changes_routers: ClassVar[bool] = True
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The zeta."""
    least: Annotated[float, Field(le=0)] = -1.0
    most: Annotated[float, Field(ge=0)] = 1.0
    """Bounds of phi, in units of a router's logit."""
    pseudo_gradient: Annotated[float, Field(ge=0)] = 0.0
    """Size of the gradient of idle experts, divided by the client's k; 0 leaves it out."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        whole = with_phi(plain)
        return Layouts(task=whole, model=whole, trained=plain, update=plain)

    def first_state(self, initial: Adapter) -> Adapter:
        layout = with_phi(initial.layout)
        extra = torch.zeros(layout.size - initial.layout.size)
        return Adapter(layout, torch.cat([initial.flat, extra]))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Nudged(layouts, task.adapter, self.pseudo_gradient / task.top_k)

    def extra_state(self, state: Layout) -> Layout | None:
        return state.only(PHI)

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        used, weight = torch.zeros(0), 0.0

        def watched() -> Iterator[Update]:
            nonlocal used, weight
            for update in updates:
                n = self.size(update)
                share = n * update.counts.double() / update.tokens
                used, weight = (used + share if weight else share), weight + n
                yield update

        kinds = {e.kind for e in adapter.layout.entries} - {PHI}
        plain = cut(adapter, adapter.layout.only(*kinds))
        mean = weighted_mean(plain, watched(), self.weigh)
        return Adapter(adapter.layout, torch.cat([mean.flat, self._nudge(adapter, used / weight)]))

    def weigh(self, update: Update) -> Weights:
        """`n a / S` for experts, `n` for shared parts."""
        n = self.size(update)
        return Weights(n * update.counts.double() / update.tokens, n)

    def _nudge(self, adapter: Adapter, used: Tensor) -> Tensor:
        """The next phi of all layers, flat, from the use (layers, experts), whose mean is k / E."""
        phi = cut(adapter, adapter.layout.only(PHI)).flat.view(used.shape).double()
        goal = used.mean(1, keepdim=True)
        wanted = torch.tanh(goal / (used + 1e-6) - 1)
        moved = self.momentum * phi + (1 - self.momentum) * wanted
        return moved.clamp(self.least, self.most).float().flatten()


class Nudged(Local):
    """A client whose idle experts learn a little from the busy ones."""

    def __init__(self, layouts: Layouts, sent: Adapter, strength: float) -> None:
        super().__init__(layouts, sent)
        self.strength = strength

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        if not self.strength:
            return
        for entry, view in self.layouts.trained.views(grad):
            if entry.layer is not None:
                mine = counts[entry.layer]
                busy = torch.einsum("e,e...->...", (mine / mine.sum()).to(view.dtype), view)
                view[mine == 0] = self.strength * busy


def with_phi(plain: Layout) -> Layout:
    """`plain` with one modulation per expert of each layer, `<experts>.phi`, behind it."""
    paths: dict[int, str] = {}
    for entry in plain.entries:
        if entry.layer is not None:
            paths.setdefault(entry.layer, entry.name.rpartition(".")[0].rpartition(".")[0])
    tensors = [(f"{path}.{PHI}", (plain.num_experts,), None) for path in paths.values()]
    return plain.plus([(name, shape, layer) for name, shape, layer in tensors])

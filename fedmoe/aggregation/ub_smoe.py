"""UB-SMoE: routers learn to favour underused experts; idle experts learn from busy ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut, place
from fedmoe.aggregation.a3smoe import A3SMoE
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import weighted_mean
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

PHI = "phi"


@section
class UBSMoE(A3SMoE):
    r"""A3SMoE's weights, learned router modulation, and pseudo-gradients.

    A token's 2 K best experts by affinity s get a bonus: $m_i = s_i + \phi_i$, elsewhere $m_i =
    s_i$, and the k_c largest of softmax(m) are chosen, of all experts (`models.modulation`). The
    vector phi of each layer is trained by clients with everything else, under
    $\lambda (\| [\phi_{min} - \phi]_+ \|^2 + \| [\phi - \phi_{max}]_+ \|^2)$. The server takes its
    mean by size and pulls that towards experts that are used less than the mean:

    $$u_i = \sum_c p_c \frac{a_{ci}}{S_c}, \quad u^* = \frac{\bar k}{E}, \quad
      \phi_i \leftarrow \zeta \sum_c p_c \phi_{ci} + (1 - \zeta) \tanh(u^* / (u_i + \epsilon) - 1)$$

    An expert that no token of a step reached takes the mean gradient of the step's others, by the
    modulated router's softmax: $g_i = \rho_c \sum_j \pi_j g_j / \sum_j \pi_j$ over experts j with
    tokens, $\pi_j$ the step's mean of softmax(m) and $\rho_c$ = `pseudo_gradient` * E / k_c. Of an
    expert that the whole round left idle nothing is sent.

    Source: arXiv:2605.16690, from second-hand notes (three that agree; no public code). Not known,
    and our choice: that there are 2 K candidates, all five constants, that pi is of m and not of s,
    that only LoRA has pseudo-gradients, and that AdamW trains phi at the adapter's rate.
    """

    name: Literal["ub_smoe"] = "ub_smoe"  # pyright: ignore
    corrects: ClassVar[bool] = True
    maskable: ClassVar[bool] = False
    changes_routers: ClassVar[bool] = True
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The zeta."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """The lambda: how hard the local loss holds phi within its bounds."""
    least: Annotated[float, Field(le=0)] = -1.0
    most: Annotated[float, Field(ge=0)] = 1.0
    """Bounds of phi, in units of a router's logit."""
    pseudo_gradient: Annotated[float, Field(ge=0)] = 0.1
    """Size of idle experts' gradient, which E / k multiplies; 0 leaves it out."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        return Layouts.all(with_phi(plain))

    def first_state(self, initial: Adapter) -> Adapter:
        layout = with_phi(initial.layout)
        extra = torch.zeros(layout.size - initial.layout.size)
        return Adapter(layout, torch.cat([initial.flat, extra]))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Nudged(layouts, task, self)

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

        mean = weighted_mean(adapter, watched(), self.weigh)
        layout = adapter.layout.only(PHI)
        phi, used = cut(mean, layout).flat.double().view(used.shape), used / weight
        wanted = torch.tanh(used.mean(1, keepdim=True) / (used + 1e-6) - 1)
        pulled = self.momentum * phi + (1 - self.momentum) * wanted
        place(Adapter(layout, pulled.float().flatten()), mean)
        return mean


class Nudged(Local):
    """A client that holds phi within its bounds, and whose idle experts learn from the others."""

    def __init__(self, layouts: Layouts, task: Task, settings: UBSMoE) -> None:
        super().__init__(layouts, task.adapter)
        self.settings = settings
        self.strength = settings.pseudo_gradient * layouts.model.num_experts / task.top_k
        self.seen: Tensor | float = 0.0

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        assert self.mass is not None, "training records the routers' softmax"
        probability = self.mass - self.seen
        self.seen = self.mass.clone()
        views = zip(
            self.layouts.trained.views(grad), self.layouts.trained.views(theta), strict=True
        )
        for (entry, view), (_, value) in views:
            if entry.kind == PHI:
                s = self.settings
                over, under = (value - s.most).clamp(min=0), (s.least - value).clamp(min=0)
                view.add_(over - under, alpha=2 * s.penalty)
            elif entry.layer is not None and self.strength:
                idle = counts[entry.layer] == 0
                share = probability[entry.layer].masked_fill(idle, 0)
                share = (share / share.sum().clamp(min=1e-20)).to(view.dtype)
                view[idle] = self.strength * torch.einsum("e,e...->...", share, view)


def with_phi(plain: Layout) -> Layout:
    """`plain` with one modulation per expert of each layer, `<experts>.phi`, behind it."""
    shape = (plain.num_experts,)
    return plain.plus([(f"{path}.{PHI}", shape, None) for path in plain.expert_paths])

"""FedProx: FedAvg whose clients are held near the global adapter."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.messages.records import Task
from fedmoe.section import section


@section
class FedProx(Mean):
    r"""Add the pull towards the global adapter to every local gradient, and average as FedAvg.

    $$\nabla F_c(w) + \mu (w - w_t)$$

    Source: Li et al. 2020 (arXiv:1812.06127, eq. 2). Ours is the gradient of the proximal term on
    LoRA's factors, before clipping and AdamW.
    """

    name: Literal["fedprox"] = "fedprox"
    corrects: ClassVar[bool] = True
    mu: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the pull; 0 is FedAvg."""

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Near(layouts, task.adapter, self.mu)


class Near(Local):
    """A client that is held near its start."""

    def __init__(self, layouts: Layouts, start: Adapter, mu: float) -> None:
        super().__init__(layouts, start)
        self.mu, self.anchor = mu, self.before.flat

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        self.anchor = self.anchor.to(theta.device)  # a copy in the first step alone
        grad.add_(theta - self.anchor, alpha=self.mu)

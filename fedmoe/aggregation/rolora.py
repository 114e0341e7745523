"""RoLoRA: `A` and `B` take turns."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedmoe.adapter import Layout
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts
from fedmoe.section import section


@section
class RoLoRA(Mean):
    r"""Train and average `B` in odd rounds and `A` in even ones; the other is the same for all.

    $$\textstyle\sum_c p_c \, B_c A = \big(\sum_c p_c B_c\big) A, \qquad
      \sum_c p_c \, B A_c = B \big(\sum_c p_c A_c\big)$$

    Both means are exact. Updates are half as large; a task carries both factors, because a client
    may have missed rounds. Trained routers are sent in every round.

    Source: Chen et al. 2025 (arXiv:2502.01755), from second-hand notes. `B` goes first: it starts
    at zero, and as long as it is zero `A` has no gradient.
    """

    name: Literal["rolora"] = "rolora"
    exact: ClassVar[bool] = True
    continues: ClassVar[bool] = False

    def layouts(self, plain: Layout, round: int) -> Layouts:
        sent = plain.only("B" if round % 2 else "A", "shift")
        return Layouts(task=plain, model=plain, trained=sent, update=sent)

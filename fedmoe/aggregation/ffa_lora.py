"""FFA-LoRA: `A` is frozen at its random start, only `B` is trained and travels."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedmoe.adapter import Adapter, Layout, cut
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local, over
from fedmoe.messages.records import Task
from fedmoe.section import section

TRAINED = "B", "shift"


@section
class FFALoRA(Mean):
    r"""Train and average `B` alone: with one `A` for all, the mean is exact.

    $$\textstyle\sum_c p_c \, B_c A_0 = \big(\sum_c p_c B_c\big) A_0$$

    `A_0` follows from the run's seed and never crosses the wire.

    Source: Sun et al. 2024 (arXiv:2403.12313).
    """

    name: Literal["ffa_lora"] = "ffa_lora"
    warm: ClassVar[Literal["sent", "here", "never"]] = "here"
    exact: ClassVar[bool] = True

    def layouts(self, plain: Layout, round: int) -> Layouts:
        sent = plain.only(*TRAINED)
        return Layouts(task=sent, model=plain, trained=sent, update=sent)

    def first_state(self, initial: Adapter) -> Adapter:
        return cut(initial, initial.layout.only(*TRAINED))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Local(layouts, over(initial, task.adapter))

"""FedSA-LoRA: `A` is shared, `B` stays with the client."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut, keep_untouched
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local, over
from fedmoe.messages.records import Task
from fedmoe.section import section

SHARED = "A", "shift"


@section
class FedSALoRA(Mean):
    r"""Train both factors, average `A`, keep `B`.

    $$A \leftarrow \textstyle\sum_c p_c A_c, \qquad B_c \text{ stays on client } c$$

    There is no single global model: every client is scored with its own `B`, and a tier's score is
    the mean over its clients. A client that has not taken part yet has `B = 0`.

    Source: Guo et al. 2025 (arXiv:2410.01463).
    """

    name: Literal["fedsa_lora"] = "fedsa_lora"
    warm: ClassVar[Literal["sent", "here", "never"]] = "here"
    personal: ClassVar[bool] = True

    def layouts(self, plain: Layout, round: int) -> Layouts:
        shared = plain.only(*SHARED)
        return Layouts(task=shared, model=plain, trained=plain, update=shared, own=plain.only("B"))

    def first_state(self, initial: Adapter) -> Adapter:
        return cut(initial, initial.layout.only(*SHARED))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return KeepsB(layouts, over(initial, task.adapter, own))


class KeepsB(Local):
    """A client that keeps its `B`."""

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        assert self.layouts.own is not None
        moved = keep_untouched(after - self.before, counts)
        self.own = cut(self.before + moved, self.layouts.own)
        return super().finish(after, counts)

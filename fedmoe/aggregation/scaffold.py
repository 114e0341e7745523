"""SCAFFOLD: control variates take the drift of a client's own data out of its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, cut, keep_untouched
from fedmoe.aggregation.mean import Mean, peek
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import weighted_mean
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

PREFIX = "control."


@section
class Scaffold(Mean):
    r"""Local gradients are corrected by the difference of two control variates.

    $$g \leftarrow g - c_c + c, \qquad c_c^+ = \frac1S \sum_s g_s, \qquad
      c \leftarrow c + \frac1N \sum_c (c_c^+ - c_c)$$

    over the S steps of the round, `g_s` before its correction; N clients in the federation. The
    mean of adapters is uniform, as that of controls, unless `weighting` says otherwise: sizes then
    weigh adapters alone. Both messages are twice as large, and a client keeps `c_c`. Of an expert
    that it did not use in a round, `c_c` stays.

    Source: Karimireddy et al. 2020 (arXiv:1910.06378, Alg. 1). Its option II, `c_c - c + (x - y) /
    (S lr)`, is the mean gradient above where the local steps are SGD's; with AdamW, which we use,
    only the mean keeps the scale of a gradient.
    """

    name: Literal["scaffold"] = "scaffold"
    corrects: ClassVar[bool] = True
    maskable: ClassVar[bool] = False
    size_weighted: ClassVar[bool] = False
    weighting: Literal["examples", "tokens", "uniform"] = "uniform"
    """A client's size in the mean of adapters; the source's is uniform."""
    most_gradient: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a control, which is a client's mean gradient: each step's is clipped to it
    before it counts, and the server takes no change of more than twice that, whoever claims it. In
    the source nothing is clipped; `training.clip_norm` clips what AdamW sees."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        both = _both(plain)
        return Layouts(task=both, model=plain, trained=plain, update=both, own=_controls(plain))

    def first_state(self, initial: Adapter) -> Adapter:
        none = torch.zeros_like(initial.flat)
        return Adapter(_both(initial.layout), torch.cat([initial.flat, none]))

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return Controlled(layouts, task.adapter, own, self.most_gradient)

    def reach(self, task: Task, moved: float) -> tuple[float, int]:
        """A control is a gradient, which `combine` bounds."""
        return moved, task.adapter.layout.size // 2

    def extra_state(self, state: Layout) -> Layout | None:
        return _controls(_plain(state))

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """The mean of the adapters by weight, and the controls' sum over N."""
        size = adapter.layout.size // 2
        plain = Adapter(_plain(adapter.layout), adapter.flat[:size])
        _, stream = peek(updates, adapter.layout)
        moved = torch.zeros(size, dtype=torch.float64)

        def adapters() -> Iterator[Update]:
            for update in stream:
                moved.add_(_clipped(update.delta.flat[size:], 2 * self.most_gradient))
                yield replace(update, delta=Adapter(plain.layout, update.delta.flat[:size]))

        mean = weighted_mean(plain, adapters(), self.weigh)
        assert num_clients > 0, num_clients
        old = adapter.flat[size:]
        controls = torch.where(moved != 0, (old.double() + moved / num_clients).float(), old)
        return Adapter(adapter.layout, torch.cat([mean.flat, controls]))


class Controlled(Local):
    """A client that corrects its gradients; values and controls lie in the same order."""

    def __init__(self, layouts: Layouts, sent: Adapter, own: Adapter | None, most: float) -> None:
        super().__init__(layouts, cut(sent, layouts.model))
        assert layouts.own is not None
        server, self.most = sent.flat[layouts.model.size :], most
        self.control = torch.zeros_like(server) if own is None else own.flat
        self.correction = server - self.control
        self.total = torch.zeros_like(server)
        self.steps = 0

    def correct(self, grad: Tensor, theta: Tensor, counts: Tensor) -> None:
        if not self.steps:  # to the model's device, once
            self.total, self.correction = (x.to(grad.device) for x in (self.total, self.correction))
        self.total += _clipped(grad, self.most)
        self.steps += 1
        grad.add_(self.correction)

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        assert self.layouts.own is not None
        mean = self.total.cpu() / self.steps
        change = keep_untouched(Adapter(self.layouts.own, mean - self.control), counts)
        self.own = Adapter(self.layouts.own, self.control + change.flat)
        moved = after.flat - self.before.flat
        return Adapter(self.layouts.update, torch.cat([moved, change.flat]))


def _clipped(values: Tensor, most: float) -> Tensor:
    norm = torch.linalg.vector_norm(values, dtype=torch.float64).item()
    return values * (most / norm) if norm > most else values


def _controls(plain: Layout) -> Layout:
    tensors = [(PREFIX + e.name, e.shape, e.layer) for e in plain.entries]
    return Layout.of(tensors, plain.num_layers, plain.num_experts, plain.rank, plain.alpha)


def _both(plain: Layout) -> Layout:
    return plain.plus([(e.name, e.shape, e.layer) for e in _controls(plain).entries])


def _plain(both: Layout) -> Layout:
    tensors = [(e.name, e.shape, e.layer) for e in both.entries if not e.name.startswith(PREFIX)]
    return Layout.of(tensors, both.num_layers, both.num_experts, both.rank, both.alpha)

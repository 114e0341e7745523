"""A client as a local step of one's own sees it: its values, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter
from fedmoe.aggregation.strategy import Local
from fedmoe.data.text import Batch
from fedmoe.errors import FedMoEError
from fedmoe.messages.records import Task
from fedmoe.models.adapted import AdaptedModel
from fedmoe.training.loss import response_loss
from fedmoe.training.steps import Told, unseen


class LocalClient:
    """One client's local round, in the hands of a local step.

    A step draws `batches`, lowers `loss` and moves `flat`; what is sent, counted and reported
    follows from that. It may return metrics of its own, by name. SGD in place of AdamW:

        def my_step(client, task):
            optimizer = torch.optim.SGD([client.flat], lr=1e-2)
            for batch in client.batches(20):
                client.loss(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
            return {"gradient_norm": 3.0}
    """

    def __init__(
        self,
        model: AdaptedModel,
        batches: Iterator[Batch],
        task: Task,
        local: Local,
        told: Told = unseen,
    ) -> None:
        if not local.whole:
            raise FedMoEError(
                "training.local_step moves the whole adapter, and this strategy trains a part of "
                "it; use a strategy that trains every value"
            )
        self.model, self.task, self._batches, self._told = model, task, batches, told
        self.flat = nn.Parameter(model.flat)
        """The values of the adapter, float32 (values,)."""
        self.tokens = self.num_targets = self.steps = 0

    @property
    def views(self) -> dict[str, Tensor]:
        """Every factor by its name, as a view of `flat`."""
        return Adapter(self.model.bound, self.model.flat).views()

    def batches(self, steps: int) -> Iterator[Batch]:
        """Yield this many batches of the client's rows, shuffled by (seed, round, client)."""
        for done, batch in enumerate(islice(self._batches, steps), 1):
            self.steps += 1
            yield batch
            self._told(self.task.client, done, steps)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per response token; its gradient lands in `flat.grad`."""
        if self.flat.grad is None:  # as `zero_grad` leaves it
            self.model.grad.zero_()
            self.flat.grad = self.model.grad
        self.tokens += self.model.num_tokens(batch)
        self.num_targets += len(batch.targets)
        return response_loss(self.model, batch) / len(batch.targets)

    def after(self) -> Adapter:
        """Return a copy of the values after training.

        Raises:
            FedMoEError: no batch was trained on, or a value is not finite.
        """
        if not self.tokens:
            raise FedMoEError(
                "training.local_step trained on no batch: `client.loss` was never called"
            )
        if not bool(torch.isfinite(self.flat).all()):
            raise FedMoEError(f"client {self.task.client} diverged: training.local_step")
        return Adapter(self.model.bound, self.model.flat.to("cpu", copy=True))


LocalStep = Callable[[LocalClient, Task], dict[str, float] | None]
"""Trains a client in place; returns metrics of its own to report, if it has any."""


def run_step(step: LocalStep, client: LocalClient) -> dict[str, float]:
    """Run a step and return the metrics that it reports.

    Raises:
        FedMoEError: it returned something else than a mapping of numbers, or nothing.
    """
    metrics = step(client, client.task)
    if metrics is None:
        return {}
    if not isinstance(metrics, dict):
        kind = type(metrics).__name__
        raise FedMoEError(f"training.local_step returned {kind}; expected a dict or None")
    return {str(name): float(value) for name, value in metrics.items()}

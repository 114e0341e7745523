"""A client as a local step of one's own sees it: its values, its batches, its loss, its update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter
from fedmoe.data.text import Batch
from fedmoe.errors import FedMoEError
from fedmoe.messages.codec import Task
from fedmoe.models.adapted import AdaptedModel
from fedmoe.training.loss import response_loss

LocalStep = Callable[["LocalClient", Task], dict[str, float] | None]
"""Trains a client in place and returns metrics of its own to report, if it has any."""


class LocalClient:
    """One client's local round, in the hands of a local step.

    A step draws `batches`, lowers `loss`, and moves `flat`; what is sent, counted and reported
    follows from that. For SGD in place of AdamW:

        def my_step(client, task):
            optimizer = torch.optim.SGD([client.flat], lr=1e-2)
            for batch in client.batches(20):
                client.loss(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
            return {"my_metric": 3.0}
    """

    def __init__(self, model: AdaptedModel, batches: Iterator[Batch]) -> None:
        self.model = model
        self.flat = nn.Parameter(model.flat)
        """The values of the adapter, float32 (values,); named views are in `views`."""
        self.tokens = self.steps = 0
        self._batches = batches

    @property
    def views(self) -> dict[str, Tensor]:
        """Every factor by its name, as a view of `flat`."""
        return Adapter(self.model.bound, self.model.flat).views()

    def batches(self, steps: int) -> Iterator[Batch]:
        """Yield this many batches of the client's rows, shuffled by (seed, round, client)."""
        for batch in islice(self._batches, steps):
            self.steps += 1
            yield batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per response token; its gradient lands in `flat.grad`.

        Raises:
            FedMoEError: the batch has no response token.
        """
        if self.flat.grad is None:  # as `zero_grad` leaves it
            self.model.grad.zero_()
            self.flat.grad = self.model.grad
        if not len(batch.targets):
            raise FedMoEError("the batch has no response token to learn")
        self.tokens += self.model.num_tokens(batch)
        return response_loss(self.model, batch) / len(batch.targets)


def run_step(step: LocalStep, client: LocalClient, task: Task) -> dict[str, float]:
    """Run a step and return the metrics that it reports.

    Raises:
        FedMoEError: the step left values that are not finite, or returned no mapping.
    """
    metrics = step(client, task) or {}
    if not isinstance(metrics, dict):
        kind = type(metrics).__name__
        raise FedMoEError(f"the local step returned {kind}; expected a dict of metrics, or None")
    if not bool(torch.isfinite(client.model.flat).all()):
        raise FedMoEError(f"client {task.client} diverged in the local step: values not finite")
    return metrics

"""One client's values in training: AdamW on what its strategy trains, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter
from fedmoe.aggregation.strategy import Local
from fedmoe.models.routed import unwaited

if TYPE_CHECKING:
    from fedmoe.messages.records import Task
    from fedmoe.training.settings import Training

NORM_VALUES = 2**24
"""Values of a gradient that are widened to float64 at one time: a GPU makes a copy of them."""


class Learner:
    """Moves a client's adapter in place, by gradients of it."""

    def __init__(
        self,
        task: Task,
        settings: Training,
        num_rounds: int,
        local: Local,
        values: Adapter,
        rescaler: tuple[nn.Parameter, float] | None = None,
    ) -> None:
        """Start afresh.

        Args:
            task: says which round it is.
            settings: of the client, with a known number of steps.
            num_rounds: of the run.
            local: what of the adapter is trained.
            values: the adapter that the model computes with.
            rescaler: learned factors, and their learning rate; None if they are not trained.
        """
        self.task, self.settings, self.num_rounds = task, settings, num_rounds
        self.local, self.values, self.rescaler = local, values, rescaler and rescaler[0]
        device = values.flat.device
        self.theta = values.flat if local.whole else local.before.flat.to(device, copy=True)
        self.flat = nn.Parameter(self.theta)
        groups = [{"params": [self.flat], "scale": 1.0}]
        if rescaler is not None:
            ratio = rescaler[1] / settings.learning_rate
            groups.append({"params": [rescaler[0]], "scale": ratio, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.counted: Tensor | int = 0

    def move(self, step: int, grad: Adapter, counts: Tensor) -> None:
        """Take a step by the gradient of the model's adapter, which may be overwritten.

        `counts` (layers, experts) are of the round so far.
        """
        rate = self.settings.rate(step, self.task.round, self.num_rounds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.flat.grad = grad.flat if self.local.whole else self.local.pull(grad).flat
        self.local.correct(self.flat.grad, self.theta, counts - self.counted)
        self.counted = counts.clone()
        clip(self.flat.grad, self.settings.clip_norm)
        self.optimizer.step()
        if not self.local.whole:
            self.local.write(Adapter(self.local.layouts.trained, self.theta), self.values)
        if self.rescaler is not None:
            self.rescaler.grad = None

    def after(self) -> Adapter:
        """Return the trained values in main memory, in the layout `trained`.

        A copy of them, unless the strategy reads them once, to take the difference.
        """
        copy = type(self.local).finish is not Local.finish
        return Adapter(self.local.layouts.trained, self.theta.detach().to("cpu", copy=copy))

    def factors(self) -> Tensor:
        """Return the rescaling factors as they are now, in main memory."""
        if self.rescaler is None:
            return self.task.rescaler
        return self.rescaler.detach().to("cpu", copy=True)


def clip(grad: Tensor, largest: float) -> None:
    """Scale a gradient down to a norm of `largest`, in place."""
    parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in grad.split(NORM_VALUES)]
    norm = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))
    too_large = norm > largest
    # A product with 1 costs a GPU less than waiting for the answer.
    if unwaited(grad) or too_large:
        grad.mul_(torch.where(too_large, largest / norm, 1.0))

"""Cross-entropy over response tokens: of a batch, of rows, of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.data.text import evaluation_batches
from fedmoe.models.routed import sent

if TYPE_CHECKING:
    from fedmoe.data.text import Batch, Tokens
    from fedmoe.models.adapted import AdaptedModel

LOGIT_VALUES = 2**24
"""Logits that exist at one time, 64 MiB in float32, and as many again for each gradient. A batch
with fewer is computed in one part."""


def response_loss(model: AdaptedModel, batch: Batch) -> Tensor:
    """Summed cross-entropy over the batch's response tokens; logits exist at those alone."""
    return states_loss(model, model.target_states(batch), batch.targets)


def states_loss(model: AdaptedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of hidden states (targets, hidden)."""
    rows, targets = _rows_at_once(model), sent(targets, states.device)
    if len(states) <= rows:
        return F.cross_entropy(model.logits(states).float(), targets, reduction="sum")
    loss = LossInParts.apply(states, targets, model.logits, rows)
    assert isinstance(loss, Tensor)
    return loss


def _rows_at_once(model: AdaptedModel) -> int:
    head: Any = model.form.head(model.model)
    return max(1, LOGIT_VALUES // head.weight.shape[0])


class LossInParts(torch.autograd.Function):
    """The summed cross-entropy of some rows at a time, and with it the gradient of their states.

    Rows have their whole vocabulary, so that a softmax is known at once and each product is made
    once; parts of the vocabulary would need the product of all of them again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], rows: int
    ) -> Tensor:
        total, parts = states.new_zeros((), dtype=torch.float32), []
        for some, wanted in zip(states.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                some = some.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = F.cross_entropy(logits(some).float(), wanted, reduction="sum")
            parts += torch.autograd.grad(loss, some) if ctx.needs_input_grad[0] else []
            total += loss.detach()
        ctx.save_for_backward(*([torch.cat(parts)] if parts else []))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


@torch.no_grad()
def summed_loss(
    model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int
) -> tuple[float, int]:
    """Summed cross-entropy over the response tokens of `rows`, and the number of those tokens."""
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    for batch in evaluation_batches(rows, batch_size, pad):
        total += response_loss(model, batch)
        count += len(batch.targets)
    return total.item(), count


def mean_loss(model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int) -> float:
    """Mean cross-entropy per response token over `rows`."""
    total, count = summed_loss(model, rows, batch_size, pad)
    return total / count


@torch.no_grad()
def row_losses(
    model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int
) -> list[float]:
    """Each row's mean cross-entropy per response token, in the order of `rows`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    losses = [0.0] * len(rows)
    batches = evaluation_batches([rows[i] for i in order], batch_size, pad)
    for start, batch in zip(range(0, len(rows), batch_size), batches, strict=True):
        parts, at_once = [], _rows_at_once(model)
        states, targets = model.target_states(batch), batch.targets.to(model.device)
        for some, wanted in zip(states.split(at_once), targets.split(at_once), strict=True):
            logits = model.logits(some).float()
            parts.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
        each = torch.cat(parts)
        row = batch.positions // batch.input_ids.shape[1]
        sums = torch.zeros(len(batch.input_ids)).index_add_(0, row, each)
        means = sums / torch.bincount(row, minlength=len(sums))
        for i, loss in zip(order[start : start + batch_size], means.tolist(), strict=True):
            losses[i] = loss
    return losses

"""Cross-entropy over response tokens: of a batch, of rows, of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.data.text import evaluation_batches

if TYPE_CHECKING:
    from fedmoe.data.text import Batch, Tokens
    from fedmoe.models.adapted import AdaptedModel


def response_loss(model: AdaptedModel, batch: Batch) -> Tensor:
    """Summed cross-entropy over the batch's response tokens; logits exist at those alone."""
    logits = model.target_logits(batch).float()
    return F.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")


@torch.no_grad()
def summed_loss(
    model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int
) -> tuple[float, int]:
    """Summed cross-entropy over the response tokens of `rows`, and the number of those tokens."""
    total, count = 0.0, 0
    for batch in evaluation_batches(rows, batch_size, pad):
        total += response_loss(model, batch).item()
        count += len(batch.targets)
    return total, count


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
        logits = model.target_logits(batch).float()
        each = F.cross_entropy(logits, batch.targets.to(logits.device), reduction="none").cpu()
        row = batch.positions // batch.input_ids.shape[1]
        sums = torch.zeros(len(batch.input_ids)).index_add_(0, row, each)
        means = sums / torch.bincount(row, minlength=len(sums))
        for i, loss in zip(order[start : start + batch_size], means.tolist(), strict=True):
            losses[i] = loss
    return losses

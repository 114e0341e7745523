"""Measurements of a model on some text: inputs of its layers, loss, logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.data.text import Tokens, evaluation_batches

Tick = Callable[[int, int], None]
"""A function that receives after each step how many are done, of how many."""


def enough(rows: Sequence[Tokens], num_tokens: int) -> list[Tokens]:
    """Return the first rows that together have `num_tokens` tokens, or all."""
    taken, total = [], 0
    for row in rows:
        if total >= num_tokens:
            break
        taken.append(row)
        total += len(row.ids)
    return taken


@torch.no_grad()
def layer_inputs(
    model: Any, rows: Sequence[Tokens], batch_size: int, pad: int, tick: Tick
) -> list[Tensor]:
    """Return the inputs of each layer's feed-forward part, first to last, (tokens, hidden)."""
    seen: list[list[Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.mlp.register_forward_pre_hook(
            lambda _, inputs, into=into: into.append(inputs[0].flatten(0, 1))
        )
        for layer, into in zip(model.model.layers, seen, strict=True)
    ]
    try:
        for i, batch in enumerate(evaluation_batches(rows, batch_size, pad), 1):
            model.model(input_ids=batch.input_ids, use_cache=False)
            for into in seen:
                into[-1] = into[-1][batch.valid.flatten()]
            tick(min(i * batch_size, len(rows)), len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts) for parts in seen]


@torch.no_grad()
def loss(
    model: Any, rows: Sequence[Tokens], batch_size: int, pad: int, tick: Tick = lambda *_: None
) -> float:
    """Return the mean cross-entropy per response token, in nats."""
    total, count = 0.0, 0
    for i, batch in enumerate(evaluation_batches(rows, batch_size, pad), 1):
        # Padded on the right under a causal mask: no real token sees the padding.
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[batch.positions])
        total += F.cross_entropy(logits.float(), batch.targets, reduction="sum").item()
        count += len(batch.targets)
        tick(min(i * batch_size, len(rows)), len(rows))
    return total / count


@torch.no_grad()
def logits_differ(dense: Any, sparse: Any, row: Tokens) -> float:
    """Return the root mean square of the difference of the logits on one text, as a share of
    the dense ones'."""
    ids = torch.tensor([row.ids])
    wanted, found = (m(input_ids=ids, use_cache=False).logits.float() for m in (dense, sparse))
    return float((found - wanted).norm() / wanted.norm())

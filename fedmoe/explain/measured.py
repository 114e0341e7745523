"""Passes of rows through a model: routing, changed choices, hidden states, and confidence.

Everything is summed by row as batches pass. Which experts a token went to is not kept: that is
known to reveal the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.data.text import Batch, Tokens, collate
from fedmoe.explain.calibration import binned
from fedmoe.explain.redundancy import similarities
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.gating.outputs import expert_output

SHARED_TOKENS = 512
"""Tokens that all experts answer, to be compared."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums over what passed the routers, and what all experts answer."""

    counts: np.ndarray
    """int64 (rows, 2, layers, experts): tokens before the response and in it, by expert."""
    base: np.ndarray
    """(layers, experts): tokens of all rows by expert, without the adapter."""
    changed: np.ndarray
    """(layers,): the share of choices that the model without the adapter does not make."""
    similarity: np.ndarray
    """(layers, experts, experts): CKA of experts' outputs; see `redundancy.similarities`."""
    tokens: int
    """Tokens behind it."""


@torch.no_grad()
def measured(model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int) -> Measured:
    """Return the routing of rows by the model as it stands, and by it without its adapter."""
    layers, number = model.layout.num_layers, model.layout.num_experts
    counts = np.zeros((len(rows), 2, layers, number), dtype=np.int64)
    base, same = torch.zeros(layers, number), torch.zeros(layers)
    adapter, top_k, rescaler = model.read(), model.top_k, model.rescaler
    nothing = Adapter(adapter.layout, torch.zeros_like(adapter.flat))
    each = -(-SHARED_TOKENS // -(-len(rows) // batch_size))
    inputs: list[list[Tensor]] = [[] for _ in range(layers)]
    for places, batch in _batches(rows, batch_size, pad):
        chosen = _chosen(model, batch, inputs, each)
        model.load(nothing)
        model.set_budget(top_k, torch.ones_like(rescaler))
        before = _chosen(model, batch)
        model.load(adapter)
        model.set_budget(top_k, rescaler)
        for i, valid in enumerate(model.routed(batch)):
            part = _parts(batch, valid, model.form.name == "causal")
            sums = torch.zeros(2 * len(places), number).index_add_(0, part, chosen[i])
            counts[places, :, i] = sums.view(len(places), 2, number).long().numpy()
            base[i] += before[i].sum(0)
            same[i] += (chosen[i] * before[i]).sum()
    with_adapter = torch.from_numpy(counts.sum((0, 1, 3)))
    similarity, tokens = _compared(model, inputs)
    changed = 1 - same / with_adapter.clamp_min(1)
    return Measured(counts, base.numpy(), changed.numpy(), similarity, tokens)


@torch.no_grad()
def confidence(
    model: AdaptedModel, rows: Sequence[Tokens], batch_size: int, pad: int
) -> np.ndarray:
    """Return each row's sums for a calibration error, float64 (rows, bins, 3)."""
    found = [np.empty(0)] * len(rows)
    for places, batch in _batches(rows, batch_size, pad):
        best = model.target_logits(batch).float().softmax(-1).max(-1)
        right = best.indices == batch.targets.to(best.indices.device)
        row = batch.positions // batch.input_ids.shape[1]
        for place, sums in zip(places, binned(best.values, right, row, len(places)), strict=True):
            found[place] = sums.numpy()
    return np.stack(found)


def _batches(
    rows: Sequence[Tokens], batch_size: int, pad: int
) -> Iterator[tuple[list[int], Batch]]:
    """Yield every row once, the shortest first, with their places."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, collate([rows[i] for i in part], pad)


def _chosen(
    model: AdaptedModel, batch: Batch, inputs: list[list[Tensor]] | None = None, each: int = 0
) -> list[Tensor]:
    """Return by layer 1 for each expert of each real token, 0 for others: (tokens, experts).

    `each` tokens' hidden states, evenly spread, are added to `inputs`.
    """
    number, found = model.layout.num_experts, []
    with model.gates.recording() as seen:
        model.target_states(batch)
        for i, (valid, routed) in enumerate(zip(model.routed(batch), seen, strict=True)):
            index = routed.index.cpu()[valid.cpu()]
            # Past the last expert stands "no expert".
            chosen = torch.zeros(len(index), number + 1).scatter_(1, index, 1.0)[:, :number]
            found.append(chosen)
            if inputs is not None:
                hidden = routed.hidden[valid.to(routed.hidden.device)]
                places = torch.linspace(0, len(hidden) - 1, min(each, len(hidden))).long()
                inputs[i].append(hidden[places.to(hidden.device)].clone())
    return found


def _parts(batch: Batch, valid: Tensor, told_apart: bool) -> Tensor:
    """Return for each real token twice its row, plus 1 where it predicts the response.

    In the stacks of an encoder-decoder the two are not told apart.
    """
    row = torch.arange(len(valid)) // (len(valid) // len(batch.input_ids))
    inside = torch.zeros(len(valid), dtype=torch.long)
    if told_apart:
        inside[batch.positions] = 1
    return (2 * row + inside)[valid.cpu()]


def _compared(model: AdaptedModel, inputs: list[list[Tensor]]) -> tuple[np.ndarray, int]:
    """Return the similarity of each layer's experts on the same tokens, and their number."""
    found, tokens = [], 0
    for layer, parts in zip(model.layers, inputs, strict=True):
        hidden = torch.cat(parts)[:SHARED_TOKENS]
        tokens = len(hidden)
        outputs = (expert_output(layer.experts, hidden, e) for e in range(layer.num_experts))
        found.append(similarities(outputs).numpy())
    return np.stack(found), tokens

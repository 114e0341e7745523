"""Batches of several clients as one sequence, of which attention sees each client's batch apart.

Batches of unlike lengths would be padded to the longest of all; here the rows of each client keep
the length that they have alone, and all that is done token by token is done at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.routed import sent
from fedmoe.models.tasks.causal import all_states, body_of
from fedmoe.models.tasks.task import Sample, TaskBatch

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel

ATTENTION = "fedmoe_packed"
SHAPES = "fedmoe_shapes"


@dataclass(frozen=True, eq=False)
class Packed:
    """Right-padded batches one after another, each row after row."""

    input_ids: Tensor  # int64 (1, tokens)
    valid: Tensor  # bool (tokens,)
    positions: Tensor  # int64 (targets,), into the tokens
    inside: Tensor  # int64 (1, tokens), a token's place in its row
    shapes: dict[int, tuple[int, int]]
    """Rows and length of each client's batch, by its place in the pass."""

    def sizes(self, number: int) -> list[int]:
        """Return the tokens of each of so many clients, of whom some have no batch."""
        return [math.prod(self.shapes.get(place, (0, 0))) for place in range(number)]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Return rows and length of what attention takes at once: neighbours of one length."""
        found: list[tuple[int, int]] = []
        for rows, length in self.shapes.values():
            more = found.pop()[0] if found and found[-1][1] == length else 0
            found.append((more + rows, length))
        return found

    @classmethod
    def of(
        cls, batches: Mapping[int, TaskBatch], device: torch.device, *, even: bool = False
    ) -> Packed:
        """Pack each client's batch, by its place in the pass; places are in order.

        They get one length if it is to be `even`: attention then takes all of them at once.
        """
        ids, valid, where, shapes, start = [], [], [], [], 0
        longest = max(batch.input_ids.shape[1] for batch in batches.values())
        for batch in batches.values():
            rows, length = batch.input_ids.shape
            spare = longest - length if even else 0
            ids.append(F.pad(batch.input_ids, (0, spare)).flatten())
            valid.append(F.pad(batch.valid, (0, spare)).flatten())
            where.append(batch.positions + batch.positions // length * spare + start)
            shapes.append((rows, length + spare))
            start += rows * (length + spare)
        inside = torch.cat([torch.arange(length).repeat(rows) for rows, length in shapes])
        return cls(
            sent(torch.cat(ids).unsqueeze(0), device),
            sent(torch.cat(valid), device),
            sent(torch.cat(where), device),
            sent(inside.unsqueeze(0), device),
            dict(zip(batches, shapes, strict=True)),
        )


def packed_states(model: nn.Module, packed: Packed) -> Tensor:
    """Return the last hidden states (tokens, hidden) of a causal language model."""
    body = body_of(model)
    config: Any = body.config
    usual = config._attn_implementation
    # transformers 5.23: makes no mask for an attention that is registered for none.
    config._attn_implementation = ATTENTION
    try:
        out = body(
            input_ids=packed.input_ids,
            position_ids=packed.inside,
            use_cache=False,
            **{SHAPES: packed.runs},
        )
    finally:
        config._attn_implementation = usual
    return out.last_hidden_state[0]


def attend_apart(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend within each row: (1, heads, tokens, width) to (1, tokens, heads, width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    shapes = settings.pop(SHAPES)
    window = settings.get("sliding_window")
    if attention_mask is not None or (window and max(n for _, n in shapes) > window):
        raise ModelError("attention needs a mask of its own, which packed batches have none of")
    sizes, out = [rows * length for rows, length in shapes], []
    split = [x[0].split(sizes, dim=1) for x in (query, key, value)]
    for shape, *three in zip(shapes, *split, strict=True):
        q, k, v = (x.unflatten(1, shape).transpose(0, 1) for x in three)
        found, _ = sdpa_attention_forward(module, q, k, v, None, **settings)
        out.append(found.flatten(0, 1))
    return torch.cat(out).unsqueeze(0), None


@torch.no_grad()
def check_packed(model: AdaptedModel, max_length: int) -> None:
    """Refuse to pack batches for a model whose states then differ from those of each alone.

    Raises:
        ModelError: tokens of a row meet by other ways than an attention that can be replaced.
    """
    register()
    ids = torch.arange(max_length + 16) * 7919 % model.model.get_input_embeddings().weight.shape[0]  # pyright: ignore
    batches = [Sample.of(ids[16:].view(1, -1), 1), Sample.of(ids[:16].view(2, 8), 1)]
    try:
        found = packed_states(model.model, Packed.of(dict(enumerate(batches)), model.device))
        states = [all_states(model.model, batch.input_ids).flatten(0, 1) for batch in batches]
        wanted = torch.cat(states)
        same = bool((found - wanted).float().norm() <= 1e-2 * wanted.float().norm())
    except (TypeError, KeyError, ModelError):
        same = False
    if not same:
        raise ModelError(
            f"simulation.clients_per_pass: in {model.family.name} models tokens of a row meet by "
            f"other ways than attention without a mask, at up to {max_length} tokens; use 1"
        )


def register() -> None:
    """Make the attention known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend_apart)

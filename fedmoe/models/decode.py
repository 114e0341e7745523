"""Greedy free-running decoding, by transformers' own generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from torch import nn
from transformers import TextIteratorStreamer

from fedmoe.models.families import family_of
from fedmoe.models.tasks import TASKS, Decoding


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pad: int,
    end: int | list[int],
) -> list[list[int]]:
    """Return the ids that answer each prompt, up to an end token, `max_new_tokens`, or the last
    position that the model has.

    An answer is the text that follows, or a label, by the family's form of task.
    """
    family = family_of(model)
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and family.task == "causal":
        # A model with learnt positions has no more of them.
        max_new_tokens = max(1, min(max_new_tokens, positions - max(map(len, prompts))))
    decoding = Decoding(max_new_tokens, pad, end, family.padded_cache)
    return TASKS[family.task].answers(model, prompts, decoding)


def greedy_stream(
    model: nn.Module, ids: torch.Tensor, max_new_tokens: int, tokenizer: Any, end: list[int]
) -> Iterator[str]:
    """Generate pieces of the text that answers one prompt (1, length), up to an end token."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = ids.to(next(model.parameters()).device)
    options = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end,
        "streamer": streamer,
    }
    thread = Thread(target=model.generate, kwargs=options, daemon=True)  # pyright: ignore
    thread.start()
    yield from streamer
    thread.join()

"""Greedy free-running decoding, by transformers' own generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from torch import nn
from transformers import TextIteratorStreamer

from fedmoe.models.families import family_of


def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, pad: int, end: int
) -> list[list[int]]:
    """The ids that follow each prompt, up to the end token or `max_new_tokens`."""
    length = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    device = next(model.parameters()).device
    out = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=False,
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=end,
        use_cache=family_of(model).padded_cache or bool(mask.all()),
    )  # fmt: skip
    return [row[length:].tolist() for row in out]


def greedy_stream(
    model: nn.Module, ids: torch.Tensor, max_new_tokens: int, tokenizer: Any
) -> Iterator[str]:
    """Pieces of the text that follows one prompt (1, length), as soon as they are known."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = ids.to(next(model.parameters()).device)
    options = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False,
        "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "streamer": streamer,
    }  # fmt: skip
    thread = Thread(target=model.generate, kwargs=options, daemon=True)  # pyright: ignore
    thread.start()
    yield from streamer
    thread.join()

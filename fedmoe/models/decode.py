"""Free-running decoding, by transformers' own generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fedmoe.models.families import family_of
from fedmoe.models.tasks import TASKS, Decoding
from fedmoe.models.tasks.task import device_of


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


@dataclass(frozen=True)
class Sampling:
    """The settings by which each next token is drawn.

    Example:
        >>> drawn = Sampling(1.0, 0.5, torch.Generator().manual_seed(0))
        >>> drawn.draw(torch.tensor([0.0, 9.0, 0.0]))
        1
    """

    temperature: float
    """Logits are divided by it; above 0."""
    top_p: float
    """The likeliest tokens are drawn from whose shares reach this sum; above 0, at most 1."""
    generator: torch.Generator
    """On a CPU: the same draws on every device."""

    def draw(self, logits: Tensor) -> int:
        """Return the token that is drawn by the logits (vocabulary,) of all."""
        logits = logits.double().cpu()
        # The largest is 0: at a tiny temperature the others vanish, and none is infinite.
        shares = ((logits - logits.max()) / self.temperature).softmax(-1)
        shares, tokens = shares.sort(descending=True, stable=True)
        shares[(shares.cumsum(-1) - shares >= self.top_p)] = 0.0
        return int(tokens[torch.multinomial(shares, 1, generator=self.generator)])


class _Drawing(LogitsProcessor):
    """Leaves of all tokens the one that is drawn; greedy decoding then takes it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        alone = torch.full_like(scores, float("-inf"))
        for row, logits in zip(alone, scores, strict=True):
            row[self.sampling.draw(logits)] = 0.0
        return alone


class _Each(StoppingCriteria):
    """Passes every token on as it comes."""

    def __init__(self, each: Callable[[int], bool]) -> None:
        self.each = each

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.tensor([not self.each(int(input_ids[0, -1]))], device=input_ids.device)


def decode_each(
    model: Any,
    prompt: Sequence[int],
    max_new_tokens: int,
    pad: int,
    end: list[int],
    each: Callable[[int], bool],
    sampling: Sampling | None = None,
) -> None:
    """Generate the answer to one prompt, up to an end token, which counts as one.

    Args:
        each: called with every id as it comes; returns whether to continue.
        sampling: greedy when omitted.
    """
    ids = torch.tensor([[*prompt]], device=device_of(model))
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=end,
        logits_processor=LogitsProcessorList([_Drawing(sampling)] if sampling else []),
        stopping_criteria=StoppingCriteriaList([_Each(each)]),
    )

"""Examples as token ids, and batches of similar lengths with loss on response tokens only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmoe.data.examples import Example
from fedmoe.section import section

BUCKET_BATCHES = 8
"""Batches that are sorted by length together: less padding, still a random order."""


@section
class TextSettings:
    """The wording of examples, the part of them that is learnt, and the limits on their length."""

    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of an example, prompt and response together."""
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"
    """The treatment of longer examples; those that are dropped are counted. `truncate` leaves out
    the oldest turns of a conversation, never its system prompt or its last answer, and drops what
    is then still too long."""
    template: Annotated[str, Field(pattern=r"^(auto|chat|plain|.+\.jinja2?)$")] = "auto"
    """How conversations are worded: by the tokenizer's chat template (`chat`), by that of a .jinja
    file (its path, on every machine of a run), or as `wording` says (`plain`, without functions).
    `auto` is `chat` where the tokenizer has a template, but `plain` for built-in data sets."""
    wording: str = "Q: {prompt}\nA: {response}"
    """The `plain` wording of a prompt and its response, which the end token follows. Further turns
    follow in the same way on a new line, and a system prompt stands on a line before them."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the template, such as enable_thinking: false."""
    describe_tools: bool = True
    """Whether the template describes the functions that may be called, often in more tokens than
    a conversation has; calls and their results are in a conversation in any case."""
    train_on: Literal["assistant", "last_turn", "all"] = "assistant"
    """The part that is learnt: every message of the assistant, the last one, or all text."""
    rewritten: Literal["split", "refuse"] = "split"
    """The treatment of conversations whose earlier turns the template words otherwise once others
    follow, such as without their reasoning: each answer becomes an example of its own."""
    control_tokens: Literal["text", "refuse", "allow"] = "text"
    """The treatment of text that contains a control token of the model, such as its end of turn: it
    is spelled as other text, such a row is unusable, or the token acts as one. Only language models
    that go on with a text are given it in the first two ways."""

    def __post_init__(self) -> None:
        there = re.findall(r"\{(?:prompt|response)\}", self.wording)
        if there != ["{prompt}", "{response}"]:
            raise ValueError("wording needs {prompt} once, and after it {response} once")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int
    pad_token_id: int

    def __call__(
        self, text: list[str], *, add_special_tokens: bool
    ) -> dict[str, list[list[int]]]: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class Tokens:
    """One example as ids; `ids[:prompt_length]` is the prompt, the rest ends with the end token."""

    ids: tuple[int, ...]
    prompt_length: int
    spans: tuple[tuple[int, int], ...] = ()
    """The parts that are learnt, first and after last, where it is not all after the prompt: the
    answers of a conversation, the first of which follows the prompt."""

    @property
    def learnt(self) -> tuple[tuple[int, int], ...]:
        """Return the parts that are learnt; nothing comes before a first token to predict it."""
        whole = self.spans or ((self.prompt_length, len(self.ids)),)
        return tuple((max(start, 1), end) for start, end in whole)

    @property
    def num_targets(self) -> int:
        return sum(end - start for start, end in self.learnt)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return what a digest of examples is made of."""
        return (self.prompt_length, *self.ids, *(n for span in self.spans for n in span))

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.prompt_length]


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded sequences; position t predicts `targets[t]`."""

    input_ids: Tensor
    """int64 (batch, length)"""
    valid: Tensor
    """bool (batch, length), False at padding."""
    positions: Tensor
    """int64 (targets,): flattened positions whose next token belongs to a response."""
    targets: Tensor
    """int64 (targets,): those next tokens."""
    prompt_lengths: Tensor
    """int64 (batch,): ids of each row's prompt."""

    @property
    def num_tokens(self) -> int:
        return int(self.valid.sum())


Frame = Callable[[Sequence[Example], Any], list[Tokens]]
"""Turns examples into ids, with a tokenizer."""


def pair_of_texts(examples: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """Two texts for an encoder-decoder, each with the tokenizer's own marks, such as languages.

    Each ends with the end token, where the tokenizer puts none, too.
    """
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    responses = tokenizer(text_target=[e.response for e in examples])["input_ids"]
    end = tokenizer.eos_token_id
    both = ([[*x, end] if x[-1:] != [end] else x for x in texts] for texts in (prompts, responses))
    return [Tokens((*p, *r), len(p)) for p, r in zip(*both, strict=True)]


FRAMES: dict[str, Frame] = {"seq2seq": pair_of_texts}
"""By a family's form of task; causal language models have templates (`data.templates`)."""


def collate(rows: Sequence[Tokens], pad: int) -> Batch:
    """One batch of examples, padded on the right."""
    length = max(len(row.ids) for row in rows) - 1
    ids = torch.full((len(rows), length), pad)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    positions, targets = [], []
    for i, row in enumerate(rows):
        n = len(row.ids) - 1
        ids[i, :n] = torch.tensor(row.ids[:-1])
        valid[i, :n] = True
        for start, end in row.learnt:
            positions += range(i * length + start - 1, i * length + end - 1)
            targets += row.ids[start:end]
    lengths = torch.tensor([row.prompt_length for row in rows])
    return Batch(ids, valid, torch.tensor(positions), torch.tensor(targets), lengths)


def training_batches(
    rows: Sequence[Tokens], batch_size: int, pad: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Endless epochs over `rows`: shuffled, then grouped by length within a few batches."""
    while True:
        order = rng.permutation(len(rows))
        chunk = batch_size * BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), chunk):
            part = sorted(order[start : start + chunk], key=lambda i: len(rows[i].ids))
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        for where in rng.permutation(len(batches)):
            yield collate([rows[i] for i in batches[where]], pad)


def evaluation_batches(rows: Sequence[Tokens], batch_size: int, pad: int) -> Iterator[Batch]:
    """Every row once, shortest first."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad)

"""Examples as token ids, and batches of similar lengths with loss on response tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmoe.data.examples import SPLITS, Example, Splits
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.section import section

PROMPT = "Q: {prompt}\nA:"
"""The wording of a prompt for the model; the response follows after one space."""
BUCKET_BATCHES = 8
"""Batches that are sorted by length together: less padding, still a random order."""


@section
class TextSettings:
    """Limits on the length of an example."""

    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of prompt and response together."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """The treatment of longer examples; those that are dropped are counted."""


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


def one_text(examples: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """Prompt and response as one text, which a causal language model goes on with."""
    prompts = tokenizer(
        [PROMPT.format(prompt=e.prompt) for e in examples], add_special_tokens=False
    )
    responses = tokenizer([f" {e.response}" for e in examples], add_special_tokens=False)
    return [
        Tokens((*p, *r, tokenizer.eos_token_id), len(p))
        for p, r in zip(prompts["input_ids"], responses["input_ids"], strict=True)
    ]


def pair_of_texts(examples: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """Two texts for an encoder-decoder, each with the tokenizer's own marks, such as languages.

    Each ends with the end token, where the tokenizer puts none, too.
    """
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    responses = tokenizer(text_target=[e.response for e in examples])["input_ids"]
    end = tokenizer.eos_token_id
    both = ([[*x, end] if x[-1:] != [end] else x for x in texts] for texts in (prompts, responses))
    return [Tokens((*p, *r), len(p)) for p, r in zip(*both, strict=True)]


def image_and_label(examples: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """An image's grey values, and the id of its label."""
    images = tokenizer([e.prompt for e in examples])["input_ids"]
    labels = tokenizer.labels([e.response for e in examples])
    return [
        Tokens((*image, label), len(image)) for image, label in zip(images, labels, strict=True)
    ]


FRAMES: dict[str, Frame] = {"causal": one_text, "seq2seq": pair_of_texts, "image": image_and_label}
"""By a family's form of task."""


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    what: str = "examples",
) -> tuple[list[Example], list[Tokens]]:
    """The examples that are kept, and their token ids, as models of a form of task take them.

    Raises:
        DataError: examples are too long, and `too_long` is `refuse` or none is left; says how many,
            and the longest.
    """
    rows = FRAMES[task](examples, tokenizer) if examples else []
    _check_lengths(rows, settings, what)
    return _short(examples, rows, settings)


def tokenize_splits(
    splits: Splits,
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    needed: Sequence[str] = SPLITS,
) -> tuple[Splits, dict[str, list[Tokens]]]:
    """Return the splits without the rows that are too long, and each one's token ids by its name.

    The rows that are left out are counted with those that were dropped before.

    Raises:
        DataError: see `tokenize`; also if a split that is needed has none left.
    """
    examples = {name: getattr(splits, name) for name in SPLITS}
    rows = {name: FRAMES[task](es, tokenizer) if es else [] for name, es in examples.items()}
    _check_lengths([row for name in SPLITS for row in rows[name]], settings, "rows")
    for name in needed:
        _check_lengths(rows[name], settings, f"{name} examples")
    short = {name: _short(examples[name], rows[name], settings) for name in SPLITS}
    lost = sum(len(rows[name]) - len(short[name][0]) for name in SPLITS)
    kept = {name: tuple(left) for name, (left, _) in short.items()}
    fitting = Splits(**kept, dropped=splits.dropped + RowCounts.of(too_long=lost))
    return fitting, {name: ids for name, (_, ids) in short.items()}


def _check_lengths(rows: Sequence[Tokens], settings: TextSettings, what: str) -> None:
    long = [len(row.ids) for row in rows if len(row.ids) > settings.max_length]
    some = len(long) < len(rows)
    if not long or (settings.too_long == "drop" and some):
        return
    raise DataError(
        f"{len(long)} of {len(rows)} {what} have more than text.max_length = "
        f"{settings.max_length} tokens (the longest has {max(long)}); raise text.max_length"
        + (", or set text.too_long: drop" if some else "")
    )


def _short(
    examples: Sequence[Example], rows: Sequence[Tokens], settings: TextSettings
) -> tuple[list[Example], list[Tokens]]:
    pairs = zip(examples, rows, strict=True)
    kept = [(e, row) for e, row in pairs if len(row.ids) <= settings.max_length]
    return [e for e, _ in kept], [row for _, row in kept]


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
        positions += range(i * length + row.prompt_length - 1, i * length + n)
        targets += row.ids[row.prompt_length :]
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

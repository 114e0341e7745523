"""Answers as text: decoded in one way, whether the model's or a row's own response."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from fedmoe.data.control import control_tokens
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens


def as_decoded(example: Example, row: Tokens, tokenizer: Any, task: str = "causal") -> Example:
    """Return an example whose response is the text that a right answer decodes to."""
    text = response_text(row, tokenizer, task)
    same = text.split() == example.response.split()
    return example if same else replace(example, response=text)


def response_text(row: Tokens, tokenizer: Any, task: str = "causal") -> str:
    """Return the text of a row's own response, decoded as an answer is."""
    return answer_text(tokenizer, row.ids[row.prompt_length :], ends_of([row], tokenizer), task)


def ends_of(rows: Sequence[Tokens], tokenizer: Any) -> set[int]:
    """Return the tokens that end answers: the tokenizer's, and those that end these rows.

    A chat template may end a turn with another control token than the tokenizer's end of text.
    """
    control = {*control_tokens(tokenizer).values()}
    return {tokenizer.eos_token_id} | {row.ids[-1] for row in rows} & control


def answer_text(
    tokenizer: Any, ids: Sequence[int], ends: Collection[int], task: str = "causal"
) -> str:
    """Return the text of an answer's ids.

    Of a causal model it goes up to the first token that ends it, and control tokens before that
    show: an answer with others than the response is wrong. An encoder-decoder's, such as the names
    of languages, do not.
    """
    if task != "causal":
        return tokenizer.decode([*ids], skip_special_tokens=True).strip()
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode([*ids[:stop]], skip_special_tokens=False).strip()

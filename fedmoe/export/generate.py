"""Answers of a model as it computes now, as text that comes piece by piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fedmoe.data.conversations import Message
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import end_tokens, prompt_ids
from fedmoe.errors import FedMoEWarning, ModelError
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.conventions import most_positions
from fedmoe.models.decode import Sampling, decode_each

UNFINISHED = "\ufffd"
"""The character of bytes that are no whole one yet."""


@dataclass(frozen=True)
class Answer:
    """An answer, and why it ended."""

    text: str
    prompt_tokens: int
    new_tokens: int
    """Tokens that were generated, with the one that ends the answer."""
    finish: Literal["stop", "length", "ended"]
    """The model or a stop text ended it, it is as long as it may be, or the caller ended it."""


class Generator:
    """Questions to a model, at the budget that is set in it."""

    def __init__(self, model: AdaptedModel, tokenizer: Any, text: TextSettings) -> None:
        self.model, self.tokenizer, self.text = model, tokenizer, text

    def prompt(self, prompt: str | Sequence[Message], tools: Sequence[Any] = ()) -> tuple[int, ...]:
        """Return a prompt or a conversation as ids, worded as in training; see `prompt_ids`."""
        return prompt_ids(prompt, self.tokenizer, self.text, self.model.form.name, tools)

    def answer(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stops: Sequence[str] = (),
        bare: bool | None = None,
        each: Callable[[str], object] = lambda text: None,
        ended: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Return the answer to a prompt, or to the ids of one.

        Args:
            prompt: the question, or ids as `prompt` returns them.
            max_new_tokens: at most so many tokens.
            sampling: greedy when omitted.
            stops: texts before the first of which the answer ends.
            bare: leave out spaces around the answer, as scores do; when omitted, of a question
                but not of ids.
            each: called with each piece of the text as it comes.
            ended: asked after every token; the answer ends where it is true.

        Raises:
            DataError: the prompt cannot be worded.
            ModelError: the model has no positions for it.
        """
        ids = self.prompt(prompt) if isinstance(prompt, str) else prompt
        self._check_length(len(ids), max_new_tokens)
        bare = isinstance(prompt, str) if bare is None else bare
        pieces, new = Pieces(self._decode, stops, bare), list[int]()
        broken = False

        def add(token: int) -> bool:
            nonlocal broken
            new.append(token)
            if token not in self.ends and (text := pieces.add(token)):
                each(text)
            broken = ended()
            return not (broken or pieces.stopped)

        pad = self.tokenizer.pad_token_id
        decode_each(self.model.model, ids, max_new_tokens, pad, self.ends, add, sampling)
        if rest := pieces.rest():
            each(rest)
        whole = pieces.stopped or bool(new and new[-1] in self.ends)
        finish = "stop" if whole else "ended" if broken else "length"
        return Answer(pieces.text, len(ids), len(new), finish)

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return end_tokens(self.tokenizer, self.text, self.model.form.name)

    @cached_property
    def positions(self) -> tuple[int | None, bool]:
        """The length of text that the model is made for; see `most_positions`."""
        return most_positions(self.model.model)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([*ids], skip_special_tokens=True)

    def _check_length(self, prompt: int, new: int) -> None:
        """Warn of an answer that may end beyond the model's positions; refuse learned ones."""
        most, learned = self.positions
        if self.model.form.name != "causal" or most is None or prompt + new <= most:
            return
        said = f"a prompt of {prompt:,} tokens and {new:,} new ones are more than the {most:,} that"
        if learned:
            raise ModelError(f"{said} the model has positions for; lower --max-new-tokens")
        warnings.warn(f"{said} the model is made for", FedMoEWarning, stacklevel=3)


class Pieces:
    """The text of tokens as they come, as far as later ones leave it as it is.

    Example:
        >>> pieces = Pieces(lambda ids: "".join(map(chr, ids)), stops=["END"])
        >>> [pieces.add(ord(letter)) for letter in "an END."]
        ['a', 'n', '', ' ', '', '', '']
        >>> pieces.text, pieces.stopped
        ('an ', True)
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), bare: bool = False
    ) -> None:
        self.decode, self.stops = decode, stops
        self.bare = bare
        """Whether spaces around the whole are left out."""
        self.ids: list[int] = []
        self.text = ""
        """All that was returned."""
        self.stopped = False

    def add(self, token: int) -> str:
        """Return the text that one more token makes certain."""
        if self.stopped:
            return ""
        self.ids.append(token)
        text = self._decoded().rstrip(UNFINISHED)
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            text = text[: min(found)]
            self.stopped = True
            return self._until(text.rstrip() if self.bare else text)
        # A tokenizer may yet take a space out, before a full stop.
        text = text.rstrip()
        return self._until(text[: len(text) - self._begun(text)])

    def rest(self) -> str:
        """Return what is left at the end."""
        text = self._decoded()
        return "" if self.stopped else self._until(text.rstrip() if self.bare else text)

    def _decoded(self) -> str:
        text = self.decode(self.ids)
        return text.lstrip() if self.bare else text

    def _begun(self, text: str) -> int:
        """Return how much of the text's end may be the beginning of a stop text."""
        longest = max(map(len, self.stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((n for n in sizes if any(s.startswith(text[-n:]) for s in self.stops)), 0)

    def _until(self, text: str) -> str:
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += new
        return new

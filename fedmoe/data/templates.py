"""Conversations as token ids, by a tokenizer's chat template, with the answers that are learnt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedmoe.data.conversations import Message, RowFault
from fedmoe.data.text import TextSettings, Tokens
from fedmoe.errors import DataError
from fedmoe.system.files import expanded

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""A template's own mark of what the assistant generates."""


class Rewritten(RowFault):
    """The template words a turn otherwise once others follow it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the tokenizer that it is for."""

    tokenizer: Any
    name: str
    """`the tokenizer's own`, or the path of a file."""
    text: str | None = None
    """The file's text; None for the tokenizer's own."""
    arguments: Mapping[str, Any] | None = None

    @property
    def source(self) -> str:
        """Return the template's text."""
        own = self.text or self.tokenizer.chat_template
        return own if isinstance(own, str) else json.dumps(own, sort_keys=True)

    @property
    def digest(self) -> str:
        """Return a digest of the text and the arguments."""
        whole = [self.source, dict(self.arguments or {})]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Return the control tokens, with one of which a turn ends."""
        return frozenset({*control_tokens(self.tokenizer).values(), self.tokenizer.eos_token_id})

    @cached_property
    def ended(self) -> bool:
        """Return whether an answer ends with a control token; if not, the end token is added."""
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            ids = self.ids(self.render(probe, None))
        except RowFault:
            return True  # it wants other messages than these, or refuses every row
        return bool(ids) and ids[self.end_of_turn(ids, 0) - 1] in self.ends

    @property
    def closing(self) -> tuple[int, ...]:
        """Return what is put behind an answer, without which it would never end."""
        return () if self.ended else (self.tokenizer.eos_token_id,)

    def apply(self, messages: Sequence[Message], tools: Any, **options: Any) -> Any:
        """Return what transformers' `apply_chat_template` gives.

        Raises:
            RowFault: the template refuses the messages.
        """
        options |= {"tools": tools, "chat_template": self.text} | dict(self.arguments or {})
        try:
            return self.tokenizer.apply_chat_template([*messages], **options)
        # A template may raise whatever its expressions do, such as a TypeError of jinja's filters.
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise RowFault(f"the chat template refuses it: {reason:.120}") from error

    def render(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        """Return the text of messages; with `prompt` also of the beginning of an answer."""
        return self.apply(messages, tools, tokenize=False, add_generation_prompt=prompt)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""
        return self.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]

    def before(self, messages: Sequence[Message], turn: int, tools: Any) -> str:
        """Return the text from which an answer, message `turn`, is generated."""
        if turn:
            return self.render(messages[:turn], tools, prompt=True)
        # No template renders nothing at all: its beginning of an answer shows after any message.
        probe = [{"role": "user", "content": "?"}]
        rest, opened = self.render(probe, tools), self.render(probe, tools, prompt=True)
        begin, text = opened.removeprefix(rest), self.render(messages[:1], tools)
        if not begin or begin not in text:
            raise RowFault("the chat template does not say how an answer opens a conversation")
        return text[: text.index(begin) + len(begin)]

    def end_of_turn(self, ids: Sequence[int], start: int) -> int:
        """Return where the answer that begins at `start` ends: with its control token.

        White space that a template puts between turns is not generated, and so not learnt.
        """
        end = len(ids)
        while end > start and ids[end - 1] not in self.ends:
            if self.tokenizer.decode([*ids[end - 1 :]], skip_special_tokens=False).strip():
                return len(ids)
            end -= 1
        return end if end > start else len(ids)


def chat_template(tokenizer: Any, settings: TextSettings) -> ChatTemplate | None:
    """Return the template by which conversations are worded; None where there is none.

    Raises:
        DataError: one is requested that is not there.
    """
    arguments, named = settings.template_arguments, settings.template
    if named == "plain":
        return None
    if named not in ("auto", "chat"):
        try:
            return ChatTemplate(
                tokenizer, named, expanded(named).read_text(encoding="utf-8"), arguments
            )
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"text.template {named!r} cannot be read: {error}") from error
    if getattr(tokenizer, "chat_template", None):
        return ChatTemplate(tokenizer, "the tokenizer's own", None, arguments)
    if named == "chat":
        raise DataError(
            "text.template is 'chat', and the tokenizer has no chat template; set text.template to "
            "the path of a .jinja file, or to plain"
        )
    return None


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that text does not contain, such as the end of a turn, with their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {str(token): number for number, token in added.items() if token.special}


def conversation_rows(
    template: ChatTemplate, messages: Sequence[Message], tools: Any, settings: TextSettings
) -> list[Tokens]:
    """Return a conversation as one row to train on; as one for each answer if it has to be.

    Raises:
        RowFault: the template refuses it, or rewrites earlier turns and that is not wanted.
    """
    answers = answers_in(messages)
    messages = messages[: answers[-1] + 1]
    if settings.train_on == "last_turn":
        return [answer_row(template, messages, tools)]
    if settings.train_on == "all":
        ids = (*template.ids(template.render(messages, tools)), *template.closing)
        return [Tokens(ids, 1, ((1, len(ids)),))]
    if not template.ended:
        return [answer_row(template, messages[: turn + 1], tools) for turn in answers]
    if MARKS.search(template.source) and getattr(template.tokenizer, "is_fast", False):
        return [_by_marks(template, messages, tools)]
    try:
        return [_by_prefixes(template, messages, tools, answers)]
    except Rewritten as fault:
        if settings.rewritten == "refuse":
            raise RowFault(f"{fault}; set text.rewritten: split") from fault
        return [answer_row(template, messages[: turn + 1], tools) for turn in answers]


def least_length(template: ChatTemplate, messages: Sequence[Message], tools: Any) -> int:
    """Return how many tokens the longest row of a conversation has at least."""
    if MARKS.search(template.source):
        return 0
    ids = template.ids(template.render(messages[: answers_in(messages)[-1] + 1], tools))
    return template.end_of_turn(ids, 0)


def answer_row(template: ChatTemplate, messages: Sequence[Message], tools: Any) -> Tokens:
    """Return the last message as an answer to those before it, which are its prompt."""
    before = template.before(messages, len(messages) - 1, tools)
    whole = template.render(messages, tools)
    if not whole.startswith(before):
        raise RowFault(
            f"the chat template begins an answer with {before[-20:]!r} when it is generated, and "
            "otherwise when it is there already"
        )
    prompt, ids = template.ids(before), template.ids(whole)
    if ids[: len(prompt)] != prompt:
        # A token across the border would be none that the model can generate after the prompt.
        ids = prompt + template.ids(whole.removeprefix(before))
    end = template.end_of_turn(ids, len(prompt))
    if end <= len(prompt):
        raise RowFault("the chat template leaves out the answer")
    return Tokens((*ids[:end], *template.closing), len(prompt))


def answers_in(messages: Sequence[Message]) -> list[int]:
    """Return the places of the assistant's messages."""
    return [n for n, message in enumerate(messages) if message["role"] == "assistant"]


def _by_marks(template: ChatTemplate, messages: Sequence[Message], tools: Any) -> Tokens:
    """Return a row whose answers the template itself marks."""
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    found = template.apply(messages, tools, **options)
    mask = [0, *found["assistant_masks"], 0]
    edges = [n for n in range(len(mask) - 1) if mask[n] != mask[n + 1]]
    ids, ends = found["input_ids"], template.ends
    spans = tuple(
        # Some marks leave out the end of the turn, without which answers would never end.
        (start, end + (ids[end - 1] not in ends and not ends.isdisjoint(ids[end : end + 1])))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
    if not spans:
        raise RowFault("the chat template marks no answer of the assistant")
    return _row(ids, spans)


def _by_prefixes(
    template: ChatTemplate, messages: Sequence[Message], tools: Any, answers: Sequence[int]
) -> Tokens:
    """Return a row whose answers follow the text that they are generated from, token for token."""
    ids = template.ids(template.render(messages, tools))
    spans = []
    for turn in answers:
        until = template.ids(template.render(messages[: turn + 1], tools))
        before = template.ids(template.before(messages, turn, tools))
        if ids[: len(until)] != until or until[: len(before)] != before:
            raise Rewritten(f"the chat template rewrites message {turn + 1} once others follow it")
        end = template.end_of_turn(until, len(before))
        if end <= len(before):
            raise RowFault(f"the chat template leaves out message {turn + 1}")
        spans.append((len(before), end))
    return _row(ids, tuple(spans))


def _row(ids: Sequence[int], spans: tuple[tuple[int, int], ...]) -> Tokens:
    """Return a row up to the end of its last answer: nothing later is learnt."""
    first, last = spans[0][0], spans[-1][1]
    return Tokens(tuple(ids[:last]), first, spans if len(spans) > 1 else ())

"""Conversations as texts and token ids: by a tokenizer's chat template, or plainly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedmoe.data.control import Spelling, control_tokens, unmarked
from fedmoe.data.conversations import Message, RowFault
from fedmoe.data.text import TextSettings
from fedmoe.errors import DataError
from fedmoe.system.files import expanded

PROBE: list[Message] = [{"role": "user", "content": "?"}]


@dataclass(frozen=True)
class Template:
    """A way to word conversations, with the tokenizer that it is for."""

    tokenizer: Any
    literal: Spelling | None = field(default=None, kw_only=True)
    """How texts are spelled in which marks show what only looks like control tokens."""

    @property
    def name(self) -> str:
        """Return which one it is, for a reader."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """Return the text of the template."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """Return a digest of all that it depends on."""
        return _digest(self.source)

    @property
    def record(self) -> dict[str, Any]:
        """Return what others need to word a prompt in the same way, as JSON values."""
        raise NotImplementedError

    def worded(self, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        """Return the text of messages; with `prompt` also of the beginning of an answer.

        Raises:
            RowFault: the template refuses the messages.
        """
        raise NotImplementedError

    def render(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        """Return the same, where marks have changed nothing else.

        Raises:
            RowFault: see `worded`; or the template changes the text that has marks.
        """
        text = self.worded(messages, tools, prompt)
        if self.literal and unmarked(text) != self.worded(
            unmarked(messages), unmarked(tools), prompt
        ):
            raise RowFault(
                "its text has control tokens, and the chat template changes such text; set "
                "text.control_tokens: allow, or change the text"
            )
        return text

    @cached_property
    def ends(self) -> frozenset[int]:
        """Return the control tokens, with one of which a turn ends."""
        return frozenset({*control_tokens(self.tokenizer).values(), self.tokenizer.eos_token_id})

    @cached_property
    def ended(self) -> bool:
        """Return whether an answer ends with a control token; if not, the end token is added."""
        probe = [*PROBE, {"role": "assistant", "content": "!"}]
        try:
            ids = self.ids(self.render(probe, None))
        except RowFault:
            return True  # it wants other messages than these, or refuses every row
        return bool(ids) and ids[self.end_of_turn(ids, 0) - 1] in self.ends

    @property
    def closing(self) -> tuple[int, ...]:
        """Return what is put behind an answer, without which it would never end."""
        return () if self.ended else (self.tokenizer.eos_token_id,)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""
        return self.literal.ids(text) if self.literal else self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts without marks."""
        return self.tokenizer([*texts], add_special_tokens=False, verbose=False)["input_ids"]

    def after(self, prompt: Sequence[int], before: str, rest: str) -> list[int]:
        """Return the ids of what follows a prompt's, none of which spans the border.

        A token across the border is none that the model can generate after the prompt.

        Raises:
            RowFault: the tokenizer has no such ids.
        """
        whole = self.ids(before + rest)
        if whole[: len(prompt)] == [*prompt]:
            return whole[len(prompt) :]
        text = self.tokenizer.decode(whole, skip_special_tokens=False)
        for start in ("", "\n", "."):  # some tokenizers put a space before every text
            head, found = self.ids(start), self.ids(start + rest)
            ids = found[len(head) :]
            same = found[: len(head)] == head
            if same and self.tokenizer.decode([*prompt, *ids], skip_special_tokens=False) == text:
                return ids
        raise RowFault(f"the tokenizer has no ids for {rest!r:.40} after those of its prompt")

    def before(self, messages: Sequence[Message], turn: int, tools: Any) -> str:
        """Return the text from which an answer, message `turn`, is generated."""
        if turn:
            return self.render(messages[:turn], tools, prompt=True)
        # No template renders nothing at all: its beginning of an answer shows after any message.
        rest, opened = self.render(PROBE, tools), self.render(PROBE, tools, prompt=True)
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


@dataclass(frozen=True)
class ChatTemplate(Template):
    """A chat template of transformers: the tokenizer's own, or a file's."""

    path: str = ""
    """The file; empty for the tokenizer's own."""
    text: str | None = None
    """The file's text."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path or "the tokenizer's own"

    @property
    def source(self) -> str:
        own = self.text or self.tokenizer.chat_template
        return own if isinstance(own, str) else json.dumps(own, sort_keys=True)

    @property
    def digest(self) -> str:
        return _digest([self.source, dict(self.arguments)])

    @property
    def record(self) -> dict[str, Any]:
        return {"template": "chat", "text": self.source, "arguments": dict(self.arguments)}

    def apply(self, messages: Sequence[Message], tools: Any, **options: Any) -> Any:
        """Return what transformers' `apply_chat_template` gives.

        Raises:
            RowFault: the template refuses the messages.
        """
        options |= {"tools": tools, "chat_template": self.text} | dict(self.arguments)
        try:
            return self.tokenizer.apply_chat_template([*messages], **options)
        # A template may raise whatever its expressions do, such as a TypeError of jinja's filters.
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise RowFault(f"the chat template refuses it: {reason:.120}") from error

    def worded(self, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        return self.apply(messages, tools, tokenize=False, add_generation_prompt=prompt)


@dataclass(frozen=True)
class Plain(Template):
    """Prompts and responses in turn by a fixed wording, each response with the end token."""

    wording: str = TextSettings().wording

    @property
    def name(self) -> str:
        return f"plain, {self.wording!r}"

    @property
    def source(self) -> str:
        return self.wording

    @property
    def record(self) -> dict[str, Any]:
        prompt, response = self.pair("{prompt}", "{response}")
        begin = "".join(self.tokenizer.convert_ids_to_tokens(self.head))
        return {"template": "plain", "begin": begin, "prompt": prompt, "response": response}

    @cached_property
    def parts(self) -> tuple[str, str, str]:
        """Return what is before a prompt, between it and its response, and after that.

        A space before a response is left to it: most tokenizers have words with their space.
        """
        first, rest = self.wording.split("{prompt}", 1)
        between, last = rest.split("{response}", 1)
        end = self.tokenizer.eos_token
        return first, between, last if last.endswith(end) else last + end

    def pair(self, prompt: str, response: str) -> tuple[str, str]:
        """Return the text of a prompt, and that of its response, which is learnt."""
        first, between, last = self.parts
        opened = between.removesuffix(" ")
        return f"{first}{prompt}{opened}", f"{between.removeprefix(opened)}{response}{last}"

    def worded(self, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        roles = [message["role"] for message in messages]
        system = roles[:1] == ["system"]
        turns = messages[system:]
        expected = ["user", "assistant"] * len(turns)
        need = "need a chat template; set text.template to chat or to a .jinja file"
        if tools:
            raise RowFault(f"its functions {need}, or text.describe_tools to false")
        if [message["role"] for message in turns] != expected[: len(turns)]:
            raise RowFault(f"messages other than of a user and the assistant in turn {need}")
        text = [messages[0]["content"]] if system else []
        for asked, *answer in (turns[n : n + 2] for n in range(0, len(turns), 2)):
            before, after = self.pair(asked["content"], "".join(a["content"] for a in answer))
            text.append(before + after * bool(answer))
        return "\n".join(text)

    @cached_property
    def head(self) -> list[int]:
        """Return the ids that the tokenizer puts before every text, such as a begin of text."""
        whole, bare = (
            self.tokenizer(["a"], add_special_tokens=special)["input_ids"][0]
            for special in (True, False)
        )
        starts = (n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
        return whole[: next(starts, 0)]

    def begun(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.head)] == self.head else [*self.head, *ids]

    def ids(self, text: str) -> list[int]:
        return self.begun(super().ids(text))

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [*map(self.begun, super().batch(texts))]


def template_of(tokenizer: Any, settings: TextSettings) -> Template:
    """Return the template by which conversations are worded.

    Raises:
        DataError: one is requested that is not there, or settings are for another one.
    """
    named, own = settings.template, getattr(tokenizer, "chat_template", None)
    if named == "chat" and not own:
        raise DataError(
            "text.template is 'chat', and the tokenizer has no chat template; set text.template to "
            "the path of a .jinja file, or to plain"
        )
    if named == "plain" or (named == "auto" and not own):
        if settings.template_arguments:
            raise DataError("text.template_arguments are for a chat template, and there is none")
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has no end token (eos_token), which ends a response")
        return Plain(tokenizer, wording=settings.wording)
    if settings.wording != TextSettings().wording:
        raise DataError(
            "text.wording is for plain prompts, and there is a chat template; set text.template to "
            "plain, or leave text.wording out"
        )
    if named in ("auto", "chat"):
        return ChatTemplate(tokenizer, arguments=settings.template_arguments)
    try:
        text = expanded(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text.template {named!r} cannot be read: {error}") from error
    return ChatTemplate(tokenizer, path=named, text=text, arguments=settings.template_arguments)


def _digest(whole: Any) -> str:
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

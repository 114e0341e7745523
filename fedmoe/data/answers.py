"""The answers of a conversation as what is learnt of its token ids, by any template."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any

from fedmoe.data.conversations import Message, RowFault
from fedmoe.data.templates import PROBE, ChatTemplate, Plain, Template
from fedmoe.data.text import TextSettings, Tokens

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""A template's own mark of what the assistant generates."""


class Rewritten(RowFault):
    """The template words a turn otherwise once others follow it."""


def conversation_rows(
    template: Template, messages: Sequence[Message], tools: Any, settings: TextSettings
) -> list[Tokens]:
    """Return a conversation as one row to train on; as one for each answer if it has to be.

    Raises:
        RowFault: the template refuses it, or rewrites earlier turns and that is not wanted.
    """
    if not (answers := learnt_in(messages)):
        raise RowFault("each answer has weight 0: nothing would be learnt")
    messages = messages[: answers[-1] + 1]
    if settings.train_on == "last_turn":
        return [answer_row(template, messages, tools)]
    if settings.train_on == "all":
        ids = (*template.ids(template.render(messages, tools)), *template.closing)
        return [Tokens(ids, 1, ((1, len(ids)),))]
    if not template.ended:
        return [answer_row(template, messages[: turn + 1], tools) for turn in answers]
    if isinstance(template, ChatTemplate) and marks_answers(template):
        return [_by_marks(template, messages, tools)]
    try:
        return [_by_prefixes(template, messages, tools, answers)]
    except Rewritten as fault:
        if settings.rewritten == "refuse":
            raise RowFault(f"{fault}; set text.rewritten: split") from fault
        return [answer_row(template, messages[: turn + 1], tools) for turn in answers]


def check_functions(template: Template, messages: Sequence[Message], tools: Any) -> None:
    """Refuse a template that words a conversation without its calls or functions.

    Many templates know nothing of functions and leave them out, so that an answer which is a call
    would be learnt as an empty one.

    Raises:
        RowFault: the name of one is not in the text, or the template refuses the conversation.
    """
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    if not calls and not tools:
        return
    text = template.worded(messages, tools, False)
    for what, some, advice in (
        ("a call of the function", calls, ""),
        ("the function", tools or (), ", or text.describe_tools to false"),
    ):
        names = [one.get("function", one).get("name", "") for one in some]
        if lost := [name for name in names if name not in text]:
            raise RowFault(
                f"the template leaves out {what} {lost[0]!r:.60}; set text.template to a .jinja "
                f"file that words it{advice}"
            )


def least_length(template: Template, messages: Sequence[Message], tools: Any) -> int:
    """Return how many tokens the longest row of a conversation has at least."""
    if marks_answers(template):
        return 0
    ids = template.ids(template.render(messages[: answers_in(messages)[-1] + 1], tools))
    return template.end_of_turn(ids, 0)


def answer_row(template: Template, messages: Sequence[Message], tools: Any) -> Tokens:
    """Return the last message as an answer to those before it, which are its prompt."""
    before = template.before(messages, len(messages) - 1, tools)
    whole = template.render(messages, tools)
    if not whole.startswith(before):
        raise RowFault(
            f"the chat template begins an answer with {before[-20:]!r} when it is generated, and "
            "otherwise when it is there already"
        )
    prompt = template.ids(before)
    ids = prompt + template.after(prompt, before, whole.removeprefix(before))
    end = template.end_of_turn(ids, len(prompt))
    if end <= len(prompt):
        raise RowFault("the chat template leaves out the answer")
    return Tokens((*ids[:end], *template.closing), len(prompt))


def answer_tail(template: Template) -> list[int]:
    """Return the ids that a template puts behind every answer that comes last."""

    def reversed_ids(text: str) -> Iterator[int]:
        answer: Message = {"role": "assistant", "content": text}
        return reversed(answer_row(template, [*PROBE, answer], None).ids)

    try:
        pairs = zip(reversed_ids("!"), reversed_ids("?"), strict=False)
        same = takewhile(lambda pair: pair[0] == pair[1], pairs)
        return [token for token, _ in same][::-1]
    except RowFault:
        return []  # it refuses such a conversation


def ended(row: Tokens, tail: Sequence[int], ends: Collection[int]) -> Tokens:
    """Return an answer's row up to the first token of its tail that ends it.

    Some templates end the last turn with two control tokens: with the first one the model's answer
    is at its end, and the second is no part of it.
    """
    first = next((n + 1 for n, token in enumerate(tail) if token in ends), len(tail))
    if first == len(tail) or [*row.ids[-len(tail) :]] != [*tail]:
        return row
    return Tokens(row.ids[: first - len(tail)], row.prompt_length)


def plain_rows(template: Plain, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
    """Return prompts and responses as rows, each one text, which the tokenizer takes at once."""
    if not pairs:
        return []
    texts = [template.pair(prompt, response) for prompt, response in pairs]
    prompts = template.batch([before for before, _ in texts])
    wholes = template.batch([before + after for before, after in texts])
    rows = []
    for (before, after), prompt, whole in zip(texts, prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt:
            whole = prompt + template.after(prompt, before, after)
        rows.append(Tokens(tuple(whole), len(prompt)))
    return rows


def answers_in(messages: Sequence[Message]) -> list[int]:
    """Return the places of the assistant's messages."""
    return [n for n, message in enumerate(messages) if message["role"] == "assistant"]


def marks_answers(template: Template) -> bool:
    """Return whether the template itself marks what the assistant generates."""
    fast = getattr(template.tokenizer, "is_fast", False)
    return bool(MARKS.search(template.source)) and fast


def learnt_in(messages: Sequence[Message]) -> list[int]:
    """Return the places of the assistant's messages that are learnt: not those of weight 0."""
    return [n for n in answers_in(messages) if messages[n].get("weight", 1)]


def _by_marks(template: ChatTemplate, messages: Sequence[Message], tools: Any) -> Tokens:
    """Return a row whose answers the template itself marks."""
    if template.literal:
        raise RowFault(
            "its text has control tokens, and the chat template marks answers by itself; set "
            "text.control_tokens: allow, or change the text"
        )
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
    every, learnt = answers_in(messages), learnt_in(messages)
    if every != learnt:
        if len(every) != len(spans):
            raise RowFault("an answer has weight 0, and the chat template marks not one part each")
        spans = tuple(span for n, span in zip(every, spans, strict=True) if n in learnt)
    return _row(ids, spans)


def _by_prefixes(
    template: Template, messages: Sequence[Message], tools: Any, answers: Sequence[int]
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

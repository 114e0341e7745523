"""Examples as token ids, by a chat template or plainly; those that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedmoe.data.answers import (
    answer_row,
    answer_tail,
    check_functions,
    conversation_rows,
    ended,
    learnt_in,
    least_length,
    plain_rows,
)
from fedmoe.data.columns import Unusable, too_many
from fedmoe.data.control import Spelling
from fedmoe.data.conversations import Message, RowFault, exchange, packed, unpacked
from fedmoe.data.decoded import as_decoded
from fedmoe.data.examples import SPLITS, Example, Splits
from fedmoe.data.templates import Plain, Template, template_of
from fedmoe.data.text import FRAMES, TextSettings, Tokens
from fedmoe.data.truncation import fitted
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts
from fedmoe.system.json_text import unwritable


@dataclass(frozen=True)
class Worded:
    """One example as rows of token ids: one, or one for each answer of a conversation."""

    example: Example
    rows: tuple[Tokens, ...]
    truncated: bool = False
    """True if its oldest turns were left out."""

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)


def word(
    examples: Sequence[Example],
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    *,
    answers: bool = False,
) -> list[Worded | Unusable]:
    """Return each example as token ids, or why it cannot be worded.

    Args:
        answers: each example is one answer to score, given all that is before it.
    """
    if task != "causal":
        if settings.template not in ("auto", "plain"):
            raise DataError(f"text.template is for causal language models; this one is {task}")
        rows = FRAMES[task](examples, tokenizer) if examples else []
        pairs = zip(examples, rows, strict=True)
        return [
            Worded(as_decoded(e, row, tokenizer, task) if answers else e, (row,))
            for e, row in pairs
        ]
    template, spelling = template_of(tokenizer, settings), Spelling(tokenizer)
    said = [_said(example, spelling, settings) for example in examples]
    found = _in_batch(examples, said, template, settings, answers)
    tail = answer_tail(template) if answers else None
    return [
        one
        if isinstance(one, Unusable)
        else found.get(n) or _chat(e, one, template, settings, tail)
        for n, (e, one) in enumerate(zip(examples, said, strict=True))
    ]


def prompt_ids(
    prompt: str | Sequence[Message],
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    tools: Sequence[Any] = (),
) -> tuple[int, ...]:
    """Return the token ids of a prompt, or of messages, from which an answer is generated.

    Functions, `tools`, are described as the settings say.

    Raises:
        DataError: it cannot be worded.
    """
    alone: list[Message] = [{"role": "user", "content": prompt}]
    messages = alone if isinstance(prompt, str) else [*prompt]
    shown = str(messages[-1]["content"])
    if odd := unwritable(prompt if isinstance(prompt, str) else packed(messages, tools)):
        raise DataError(f"the prompt {odd}")
    example = Example(shown, "", "")
    if task != "causal":
        if len(messages) > 1 or messages[0]["role"] != "user" or tools:
            raise DataError("this model takes one text and no conversation: one message of a user")
        return FRAMES[task]([example], tokenizer)[0].prompt
    template = template_of(tokenizer, settings)
    said = _said(example, Spelling(tokenizer), settings, messages, [*tools] or None)
    try:
        if isinstance(said, Unusable):
            raise RowFault(said.fault)
        template = replace(template, literal=said.spelling)
        if messages is not alone:
            check_functions(template, said.messages, said.tools)
        return tuple(template.ids(template.before(said.messages, len(messages), said.tools)))
    except RowFault as fault:
        raise DataError(f"{shown!r:.40}: {fault}") from fault


def end_tokens(tokenizer: Any, settings: TextSettings, task: str = "causal") -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and the chat template's own."""
    ends = {tokenizer.eos_token_id}
    if task == "causal":
        (worded,) = word([Example("?", "!", "")], tokenizer, settings, answers=True)
        if isinstance(worded, Worded):
            ends |= {worded.rows[0].ids[-1]} & template_of(tokenizer, settings).ends
    return sorted(ends)


def unended(tokenizer: Any, settings: TextSettings) -> str:
    """Return that the chat template ends no answer, and what does; empty where it does."""
    template = template_of(tokenizer, settings)
    if template.ended:
        return ""
    return (
        f"the chat template ({template.name}) ends answers with no control token; the tokenizer's "
        f"end token, {tokenizer.eos_token!r}, is put behind each, and each is an example of its own"
    )


def turns(example: Example) -> list[Example]:
    """Return each answer of a conversation that is learnt, with all that is before it.

    Example:
        >>> [turn.response for turn in turns(Example("hi", "ho", ""))]
        ['ho']
    """
    if not example.conversation:
        return [example]
    messages, tools = unpacked(example.conversation)
    made = []
    for turn in learnt_in(messages):
        part = messages[: turn + 1]
        prompt, response = exchange(part)
        whole = packed(part, tools or ())
        made.append(replace(example, prompt=prompt, response=response, conversation=whole))
    return made


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    what: str = "examples",
    *,
    answers: bool = False,
) -> tuple[list[Example], list[Tokens]]:
    """Return the examples that are kept, and their token ids as a form of task takes them.

    An example that makes several rows is there with each of them. With `answers` the response of
    an example is the text that its token ids decode to.

    Raises:
        DataError: examples are too long, and `too_long` is `refuse` or none is left; says how many,
            and the longest. Or some cannot be worded.
    """
    worded = _usable(word(examples, tokenizer, settings, task, answers=answers), what)
    _check_lengths(worded, settings, what)
    pairs = [(w.example, row) for w in worded if _fits(w, settings) for row in w.rows]
    return [example for example, _ in pairs], [row for _, row in pairs]


def tokenize_splits(
    splits: Splits,
    tokenizer: Any,
    settings: TextSettings,
    task: str = "causal",
    needed: Sequence[str] = SPLITS,
    *,
    unusable: Literal["refuse", "drop"] = "refuse",
) -> tuple[Splits, dict[str, list[tuple[Tokens, ...]]]]:
    """Return the splits without the rows that are too long, and each one's token ids by its name.

    The ids stand by example, as rows to train on. The examples that are left out are counted with
    those that were dropped before; so are those that cannot be worded, if `unusable` is `drop`.

    Raises:
        DataError: see `tokenize`; also if a split that is needed has none left.
    """
    found = {s: word(getattr(splits, s), tokenizer, settings, task) for s in SPLITS}
    every = [one for name in SPLITS for one in found[name]]
    usable = _usable(every, "rows", unusable)
    _check_lengths(usable, settings, "rows")
    worded = {s: [w for w in found[s] if isinstance(w, Worded)] for s in SPLITS}
    for name in needed:
        _check_lengths(worded[name], settings, f"{name} examples")
    fitting = {s: [w for w in worded[s] if _fits(w, settings)] for s in SPLITS}
    kept = [w for name in SPLITS for w in fitting[name]]
    lost = RowCounts.of(too_long=len(usable) - len(kept), refused=len(every) - len(usable))
    lost = replace(lost, truncated=sum(w.truncated for w in kept))
    left = {name: tuple(w.example for w in fitting[name]) for name in SPLITS}
    rows = {name: [w.rows for w in fitting[name]] for name in SPLITS}
    return replace(splits, **left, dropped=splits.dropped + lost), rows


@dataclass(frozen=True)
class _Said:
    """The messages of an example, as a template takes them."""

    messages: list[Message]
    tools: list[Any] | None
    spelling: Spelling | None = None
    """How they are spelled, where marks show what only looks like control tokens."""

    @property
    def is_pair(self) -> bool:
        """Return whether it is one prompt and its response, and no more."""
        keys = [{"role": m["role"]} | {k: "" for k in m if k != "role"} for m in self.messages]
        pair = [{"role": role, "content": ""} for role in ("user", "assistant")]
        return keys == pair and not (self.tools or self.spelling)


def _said(
    example: Example,
    spelling: Spelling,
    settings: TextSettings,
    messages: list[Message] | None = None,
    tools: list[Any] | None = None,
) -> _Said | Unusable:
    """Return what is said in an example, its control tokens treated as the settings want it."""
    if messages is None:
        messages, tools = _messages(example)
    tools = tools if settings.describe_tools else None
    there = "" if settings.control_tokens == "allow" else spelling.found([messages, tools])
    if not there:
        return _Said(messages, tools)
    if settings.control_tokens == "refuse":
        said = "which is a control token of the model; set text.control_tokens: text, or change it"
        return Unusable(_where(example), f"its text has {there!r}, {said}")
    try:
        return _Said(spelling.marked(messages), spelling.marked(tools), spelling)
    except RowFault as fault:
        return Unusable(_where(example), str(fault))


def _where(example: Example) -> str:
    return f"example {example.prompt!r:.40}"


def _in_batch(
    examples: Sequence[Example],
    said: Sequence[_Said | Unusable],
    template: Template,
    settings: TextSettings,
    answers: bool,
) -> dict[int, Worded]:
    """Return by their number the plain pairs, which a tokenizer takes quickest in one batch."""
    if not isinstance(template, Plain):
        return {}
    pairs = {n: s.messages for n, s in enumerate(said) if isinstance(s, _Said) and s.is_pair}
    rows = plain_rows(template, [(p["content"], r["content"]) for p, r in pairs.values()])
    found = dict(zip(pairs, rows, strict=True))
    if answers:
        tokenizer = template.tokenizer
        return {n: Worded(as_decoded(examples[n], r, tokenizer), (r,)) for n, r in found.items()}
    if settings.train_on == "all":
        found = {n: replace(row, spans=((1, len(row.ids)),)) for n, row in found.items()}
    return {n: Worded(examples[n], (row,)) for n, row in found.items()}


def _chat(
    example: Example,
    said: _Said,
    template: Template,
    settings: TextSettings,
    tail: Sequence[int] | None,
) -> Worded | Unusable:
    """Word a conversation; with the `tail` of answers as one answer that is scored."""
    template = replace(template, literal=said.spelling)

    def made(part: list[Message]) -> list[Tokens]:
        if tail is not None:
            return [ended(answer_row(template, part, said.tools), tail, template.ends)]
        return conversation_rows(template, part, said.tools, settings)

    try:
        check_functions(template, said.messages, said.tools)
        rows, truncated = fitted(
            said.messages, settings, made, lambda part: least_length(template, part, said.tools)
        )
        example = as_decoded(example, rows[0], template.tokenizer) if tail is not None else example
        return Worded(example, tuple(rows), truncated)
    except RowFault as fault:
        return Unusable(_where(example), str(fault))


def _messages(example: Example) -> tuple[list[Message], list[Any] | None]:
    if example.conversation:
        return unpacked(example.conversation)
    pair = (("user", example.prompt), ("assistant", example.response))
    return [{"role": role, "content": text} for role, text in pair], None


def _usable(
    found: Sequence[Worded | Unusable], what: str, unusable: Literal["refuse", "drop"] = "refuse"
) -> list[Worded]:
    faults = [one for one in found if isinstance(one, Unusable)]
    if faults and (unusable == "refuse" or len(faults) == len(found)):
        advice = "; data.unusable=drop leaves them out" if len(faults) < len(found) else ""
        raise too_many(what, f"cannot be worded, of {len(found)}{advice}", faults)
    return [one for one in found if isinstance(one, Worded)]


def _fits(worded: Worded, settings: TextSettings) -> bool:
    return worded.longest <= settings.max_length


_TOOLS = "; text.describe_tools: false leaves out the descriptions of functions that are in them"


def _describes(worded: Worded) -> bool:
    return '"tools": [' in worded.example.conversation


def _check_lengths(worded: Sequence[Worded], settings: TextSettings, what: str) -> None:
    long = [w.longest for w in worded if not _fits(w, settings)]
    some = len(long) < len(worded)
    if not long or (settings.too_long != "refuse" and some):
        return
    raise DataError(
        f"{len(long)} of {len(worded)} {what} have more than text.max_length = "
        f"{settings.max_length} tokens (the longest has {max(long)}); raise text.max_length"
        + (", or set text.too_long: drop" if some else "")
        + (_TOOLS if settings.describe_tools and any(map(_describes, worded)) else "")
    )

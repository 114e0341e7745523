"""How examples become token ids: by a chat template or plainly, and what becomes of long ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedmoe.data.columns import Unusable, too_many
from fedmoe.data.conversations import Message, RowFault, exchange, packed, unpacked
from fedmoe.data.examples import SPLITS, Example, Splits
from fedmoe.data.templates import (
    ChatTemplate,
    answer_row,
    answers_in,
    chat_template,
    control_tokens,
    conversation_rows,
    least_length,
)
from fedmoe.data.text import FRAMES, TextSettings, Tokens
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts


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
        examples: what to word.
        tokenizer: the model's.
        settings: by which template, and which part of a conversation is learnt.
        task: the model's form of task.
        answers: each example is one answer to score, given all that is before it.
    """
    template = chat_template(tokenizer, settings) if task == "causal" else None
    if template is None and settings.template not in ("auto", "plain"):
        raise DataError(f"text.template is for causal language models; this one is {task}")
    control = [] if settings.control_tokens == "allow" else [*control_tokens(tokenizer)]
    faults = [_fault(e, control if task == "causal" else [], template) for e in examples]
    if template is None:
        return _plain(examples, faults, tokenizer, settings, task, answers)
    return [
        _chat(example, template, settings, answers) if fault is None else fault
        for example, fault in zip(examples, faults, strict=True)
    ]


def prompt_ids(
    prompt: str, tokenizer: Any, settings: TextSettings, task: str = "causal"
) -> tuple[int, ...]:
    """Return the token ids of a prompt, from which its answer is generated."""
    template = chat_template(tokenizer, settings) if task == "causal" else None
    if template is None:
        return FRAMES[task]([Example(prompt, "", "")], tokenizer)[0].prompt
    messages = [{"role": "user", "content": prompt}]
    try:
        return tuple(template.ids(template.before(messages, 1, None)))
    except RowFault as fault:
        raise DataError(f"{prompt!r:.40}: {fault}") from fault


def end_tokens(tokenizer: Any, settings: TextSettings, task: str = "causal") -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and the chat template's own."""
    ends = {tokenizer.eos_token_id}
    if task == "causal" and (template := chat_template(tokenizer, settings)) is not None:
        (worded,) = word([Example("?", "!", "")], tokenizer, settings, answers=True)
        if isinstance(worded, Worded):
            ends |= {worded.rows[0].ids[-1]} & template.ends
    return sorted(ends)


def turns(example: Example) -> list[Example]:
    """Return each answer of a conversation as an example of its own, with all that is before it.

    Example:
        >>> [turn.response for turn in turns(Example("hi", "ho", ""))]
        ['ho']
    """
    if not example.conversation:
        return [example]
    messages, tools = unpacked(example.conversation)
    made = []
    for turn in answers_in(messages):
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


def _fault(
    example: Example, control: Sequence[str], template: ChatTemplate | None
) -> Unusable | None:
    """Return why an example cannot be worded, as far as its text says."""
    text = example.conversation or f"{example.prompt}\0{example.response}"
    if there := [token for token in control if token in text]:
        said = "which is a control token of the model; set text.control_tokens: allow, or change it"
        return Unusable(_where(example), f"its text has {there[0]!r}, {said}")
    if template is None and example.conversation:
        messages, tools = unpacked(example.conversation)
        if tools or [message["role"] for message in messages] != ["user", "assistant"]:
            said = "it has more than one prompt and one response, and there is no chat template"
            return Unusable(
                _where(example), f"{said}; set text.template to chat or to a .jinja file"
            )
    return None


def _where(example: Example) -> str:
    return f"example {example.prompt!r:.40}"


def _plain(
    examples: Sequence[Example],
    faults: Sequence[Unusable | None],
    tokenizer: Any,
    settings: TextSettings,
    task: str,
    answers: bool,
) -> list[Worded | Unusable]:
    good = [e for e, fault in zip(examples, faults, strict=True) if fault is None]
    rows = FRAMES[task](good, tokenizer) if good else []
    if settings.train_on == "all" and not answers and task == "causal":
        rows = [replace(row, spans=((1, len(row.ids)),)) for row in rows]
    worded = iter([Worded(e, (row,)) for e, row in zip(good, rows, strict=True)])
    return [next(worded) if fault is None else fault for fault in faults]


def _chat(
    example: Example, template: ChatTemplate, settings: TextSettings, answers: bool
) -> Worded | Unusable:
    messages, tools = _messages(example)
    tools = tools if settings.describe_tools else None

    def made(part: list[Message]) -> list[Tokens]:
        if answers:
            return [answer_row(template, part, tools)]
        return conversation_rows(template, part, tools, settings)

    try:
        rows, truncated = _fitted(
            messages, settings, made, lambda part: least_length(template, part, tools)
        )
        example = _as_decoded(example, rows[0], template) if answers else example
        return Worded(example, tuple(rows), truncated)
    except RowFault as fault:
        return Unusable(_where(example), str(fault))


def _messages(example: Example) -> tuple[list[Message], list[Any] | None]:
    if example.conversation:
        return unpacked(example.conversation)
    pair = (("user", example.prompt), ("assistant", example.response))
    return [{"role": role, "content": text} for role, text in pair], None


def _fitted(
    messages: list[Message],
    settings: TextSettings,
    made: Callable[[list[Message]], list[Tokens]],
    at_least: Callable[[list[Message]], int],
) -> tuple[list[Tokens], bool]:
    """Return the rows of a conversation, without its oldest turns as long as they are too long."""
    most, part = settings.max_length, messages
    if settings.too_long == "truncate":
        # The bound is quick to have; rows take a rendering of every turn.
        while at_least(part) > most and (shorter := without_oldest(part)) is not None:
            part = shorter
    rows = made(part)
    while settings.too_long == "truncate" and max(len(r.ids) for r in rows) > most:
        if (shorter := without_oldest(part)) is None:
            break
        rows, part = made(shorter), shorter
    return rows, part is not messages


def without_oldest(messages: list[Message]) -> list[Message] | None:
    """Return a conversation without its oldest turn: a user's message and what follows it.

    The system prompt stays, and so does the last answer with what it answers: None if no more than
    that is left.

    Example:
        >>> chat = [{"role": r} for r in ("system", "user", "assistant", "user", "assistant")]
        >>> [message["role"] for message in without_oldest(chat)]
        ['system', 'user', 'assistant']
    """
    head = int(messages[0]["role"] == "system")
    last = answers_in(messages)[-1]
    later = (n for n in range(head + 1, last) if messages[n]["role"] == "user")
    start = next(later, None)
    return None if start is None else messages[:head] + messages[start:]


def _as_decoded(example: Example, row: Tokens, template: ChatTemplate) -> Example:
    """Return an example whose response is the text that a right answer decodes to."""
    ids = [*row.ids[row.prompt_length :]]
    text = template.tokenizer.decode(ids, skip_special_tokens=True).strip()
    same = text.split() == example.response.split()
    return example if same else replace(example, response=text)


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


def _check_lengths(worded: Sequence[Worded], settings: TextSettings, what: str) -> None:
    long = [w.longest for w in worded if not _fits(w, settings)]
    some = len(long) < len(worded)
    if not long or (settings.too_long != "refuse" and some):
        return
    raise DataError(
        f"{len(long)} of {len(worded)} {what} have more than text.max_length = "
        f"{settings.max_length} tokens (the longest has {max(long)}); raise text.max_length"
        + (", or set text.too_long: drop" if some else "")
    )

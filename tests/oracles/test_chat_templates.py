"""Token ids and what is learnt of them, against a slow wording over character spans."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedmoe.data import Example
from fedmoe.data.columns import Unusable
from fedmoe.data.control import control_tokens
from fedmoe.data.conversations import exchange, packed
from fedmoe.data.text import TextSettings, collate
from fedmoe.data.wording import Worded, turns, word
from tests.support.chat_templates import THINKING, tokenizer
from tests.support.template_shapes import SHAPES

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TOKENIZERS = {name: shape.tokenizer() for name, shape in SHAPES.items()}
words = st.text(alphabet="aB7 \n<é{|", min_size=1, max_size=8).filter(str.strip)


def example_of(messages, tools=None):
    return Example(*exchange(messages), "", conversation=packed(messages, tools or ()))


def long(name):
    return TextSettings(max_length=10_000, template_arguments=dict(SHAPES[name].arguments))


@st.composite
def conversations(draw, name):
    """Turns of a user and the assistant; where the template can, a system text and calls."""
    shape, messages = SHAPES[name], []
    if shape.system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(words)})
        if shape.calls and draw(st.booleans()):
            call = {"type": "function", "function": {"name": "f", "arguments": {"x": draw(words)}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": draw(words)})
        answer = {"role": "assistant", "content": draw(words)}
        if shape.reasoning:
            answer["reasoning_content"] = draw(words)
        messages.append(answer)
    tools = TOOLS if shape.calls and draw(st.booleans()) else None
    return messages, tools


def learnt_by_characters(tokenizer, pieces):
    """Ids and the mask of learnt ones by offsets of characters; None where a token has both."""
    text, spans, at = "".join(piece for piece, _ in pieces), [], 0
    for piece, learnt in pieces:
        spans += [(at, at + len(piece))] if learnt else []
        at += len(piece)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = []
    for start, end in found["offset_mapping"]:
        inside = [a <= start and end <= b for a, b in spans]
        if not any(inside) and any(start < b and a < end for a, b in spans):
            return None
        mask.append(any(inside))
    return found["input_ids"], mask


def last_turn_by_hand(tokenizer, pieces):
    """The last learnt piece after the ids of what precedes it."""
    last = max(n for n, (_, learnt) in enumerate(pieces) if learnt)
    before = "".join(piece for piece, _ in pieces[:last])
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer = tokenizer(pieces[last][0], add_special_tokens=False)["input_ids"]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def expected_rows(name, tokenizer, messages, tools):
    """One row by characters; one for each answer if turns are rewritten or a token has both."""
    slow, rewrites = SHAPES[name].slow, SHAPES[name].rewrites(tools)
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    one = learnt_by_characters(tokenizer, slow(messages, tools))
    if one is not None and not (rewrites and len(answers) > 1):
        return [one]
    parts = [slow(messages[: n + 1], tools) for n in answers]
    return [last_turn_by_hand(tokenizer, part) for part in parts]


def found_rows(rows):
    """Ids and masks of what was made."""
    return [
        (list(row.ids), [any(a <= n < b for a, b in row.learnt) for n in range(len(row.ids))])
        for row in rows
    ]


def cut(rows):
    """Rows up to their last learnt token: nothing later is learnt."""
    ends = [len(mask) - mask[::-1].index(True) for _, mask in rows]
    return [(ids[:end], mask[:end]) for (ids, mask), end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=25)
@given(st.data())
def test_every_answer_is_learnt_once_with_its_end_and_nothing_else(name, data):
    messages, tools = data.draw(conversations(name))
    made = TOKENIZERS[name]
    rendered = made.apply_chat_template(
        messages, tools=tools, tokenize=False, **SHAPES[name].arguments
    )
    pieces = SHAPES[name].slow(messages, tools)
    assert rendered == "".join(piece for piece, _ in pieces)
    (worded,) = word([example_of(messages, tools)], made, long(name))
    assert isinstance(worded, Worded), worded
    found = found_rows(worded.rows)
    expected = cut(expected_rows(name, made, messages, tools))
    if name == "generation marks":  # its own mask has the whole of a token that is partly marked
        assume(learnt_by_characters(made, pieces) is not None)
    assert found == expected


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=12)
@given(st.data())
def test_an_answer_to_score_follows_the_ids_that_it_is_generated_from(name, data):
    messages, tools = data.draw(conversations(name))
    made = TOKENIZERS[name]
    each = turns(example_of(messages, tools))
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    assert len(each) == len(answers)
    for n, worded in zip(answers, word(each, made, long(name), answers=True), strict=True):
        assert isinstance(worded, Worded), worded
        (row,) = worded.rows
        options = {"tools": tools, "add_generation_prompt": True, **SHAPES[name].arguments}
        prompt = made.apply_chat_template(messages[:n], **options)["input_ids"]
        assert list(row.prompt) == prompt
        # Control tokens within an answer show; the one that ends it does not.
        assert row.ids[-1] in {*control_tokens(made).values(), made.eos_token_id}
        text = made.decode([*row.ids[row.prompt_length : -1]])
        assert worded.example.response.split() == text.split()
        assert messages[n]["content"].strip() in text


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=8)
@given(st.data())
def test_targets_of_a_batch_are_the_learnt_tokens(name, data):
    messages, tools = data.draw(conversations(name))
    made = TOKENIZERS[name]
    (worded,) = word([example_of(messages, tools)], made, long(name))
    rows = [*worded.rows, *worded.rows]
    batch = collate(rows, 0)
    targets = [i for ids, mask in found_rows(rows) for i, m in zip(ids, mask, strict=True) if m]
    assert batch.targets.tolist() == targets
    assert len(targets) == sum(row.num_targets for row in rows)
    before = batch.input_ids.flatten()[batch.positions].tolist()
    assert before == [ids[n - 1] for ids, mask in found_rows(rows) for n, m in enumerate(mask) if m]


def test_the_last_turn_or_all_text_can_be_learnt():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    made = TOKENIZERS["ChatML"]
    example = example_of(messages)
    whole = made.apply_chat_template(messages)["input_ids"]
    (last,) = word([example], made, TextSettings(train_on="last_turn"))
    assert last.rows[0].spans == ()
    assert list(last.rows[0].ids) == whole[:-1]
    assert made.decode(last.rows[0].ids[last.rows[0].prompt_length :]) == "b<|im_end|>"
    (every,) = word([example], made, TextSettings(train_on="all"))
    assert list(every.rows[0].ids) == whole
    assert every.rows[0].num_targets == len(whole) - 1


def test_a_template_that_rewrites_can_be_refused():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
    ] * 2
    made = tokenizer(THINKING)
    (split,) = word([example_of(messages)], made, TextSettings())
    texts = [made.decode(row.ids[row.prompt_length :]) for row in split.rows]
    assert texts == ["<think>\nc\n</think>\nb<|im_end|>"] * 2
    assert "<think>" not in made.decode(split.rows[1].prompt)
    (refused,) = word([example_of(messages)], made, TextSettings(rewritten="refuse"))
    assert "rewrites message 2 once others follow it; set text.rewritten: split" in str(refused)


@pytest.mark.parametrize("name", [n for n, shape in SHAPES.items() if not shape.calls])
def test_a_template_that_knows_no_functions_is_refused_where_there_are_some(name):
    ask, call = {"role": "user", "content": "a"}, {"name": "get_time", "arguments": {}}
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    says = {"role": "assistant", "content": "b"}
    made = TOKENIZERS[name]
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    for messages, there, lost in (([ask, calls], None, "a call of "), ([ask, says], tools, "")):
        (found,) = word([example_of(messages, there)], made, long(name))
        assert isinstance(found, Unusable)
        assert f"leaves out {lost}the function" in found.fault
    told = replace(long(name), describe_tools=False)
    assert isinstance(word([example_of([ask, says], tools)], made, told)[0], Worded)
    plain = replace(long(name), template="plain", template_arguments={})
    (found,) = word([example_of([ask, calls])], made, plain)
    assert isinstance(found, Unusable)

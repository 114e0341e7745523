"""Function calls in answers are read by the form in which the chat template writes them."""

import json

import pytest

from fedmoe.data.templates import PROBE, template_of
from fedmoe.data.text import TextSettings
from fedmoe.serving.functions import Calls, calls_of
from tests.support.chat_templates import CHATML, tokenizer
from tests.support.template_shapes import SHAPES

ONE = {"name": "turn_on", "arguments": {"room": "Küche", "lights": [1, {"dim": 0.5}], "all": True}}
TWO = {"name": "wait", "arguments": {}}


def form_of(made):
    return calls_of(template_of(made, TextSettings()), lambda ids: decoded(made, ids))


def decoded(made, ids):
    return made.decode([*ids], skip_special_tokens=True)


def answered(made, calls):
    """The text of an answer that the template words with these calls."""
    template = template_of(made, TextSettings())
    listed = [
        {"type": "function", "id": f"probe_000{n}", "function": c} for n, c in enumerate(calls)
    ]
    message = {"role": "assistant", "content": "", "tool_calls": listed}
    before, whole = template.before(PROBE, 1, None), template.render([*PROBE, message], None)
    return decoded(made, template.ids(whole.removeprefix(before)))


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.calls])
def test_calls_that_a_template_words_are_read_again(name):
    made = SHAPES[name].tokenizer()
    for calls in ([ONE], [ONE, TWO, ONE]):
        found = form_of(made).read(answered(made, calls))
        assert [x | {"arguments": json.loads(x["arguments"])} for x in found] == calls


def test_several_calls_are_read_and_text_is_left_alone():
    form = form_of(tokenizer(CHATML))
    text = answered(tokenizer(CHATML), [ONE, TWO])
    assert [call["name"] for call in form.read(text)] == ["turn_on", "wait"]
    for other in (
        "Yes.",
        "",
        text + "Done",
        "Well: " + text,
        text.strip()[:-1],
        '<call>{"name": "f"}',
    ):
        assert not form.read(other)
    twice = '<call>{"name": "f", "name": "g", "arguments": {}}'
    assert not form.read(twice)
    assert not form.read('<call>{"name": "f", "arguments": ' + '{"a":' * 9000)


def test_a_template_without_calls_has_no_form():
    assert (
        form_of(tokenizer("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")) is None
    )


def test_text_is_held_back_as_long_as_it_may_be_a_call():
    form = Calls("<call>", "", None, "arguments")
    assert all(form.may_begin(text) for text in ("", " ", "<ca", '<call>{"na'))
    assert not any(form.may_begin(text) for text in ("Yes", "<b>", "<call> "))

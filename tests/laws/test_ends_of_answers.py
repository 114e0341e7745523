"""Every answer that is trained or scored ends with a token that ends it, whatever the template."""

import json

import pytest

from fedmoe.data import Example
from fedmoe.data.control import control_tokens
from fedmoe.data.conversations import exchange, packed
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import end_tokens, unended, word
from tests.support.chat_templates import CHATML, MARKED, tokenizer
from tests.support.template_shapes import SHAPES

BARE = """
{%- for m in messages %}
    {{- '### ' + m.role + '\\n' + m.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"""
OUTSIDE = MARKED.replace(
    "{%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}",
    "{%- generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}",
)
CHAT = [
    {"role": "user", "content": "how much?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "three"},
]
TEMPLATES = {
    "bare": lambda: tokenizer(BARE),
    "marks without the end": lambda: tokenizer(OUTSIDE),
    **{name: shape.tokenizer for name, shape in SHAPES.items()},
}


def learnt(made, **settings):
    example = Example(*exchange(CHAT), "", conversation=packed(CHAT))
    (worded,) = word([example], made, TextSettings(**settings))
    return [[made.decode(row.ids[a:b]) for a, b in row.learnt] for row in worded.rows]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("train_on", ["assistant", "last_turn", "all"])
def test_each_answer_ends_with_a_token_that_ends_it(name, train_on):
    made = TEMPLATES[name]()
    control = (*control_tokens(made), made.eos_token)
    for parts in learnt(made, train_on=train_on):
        assert all(part.rstrip("\n").endswith(control) for part in parts)
    rows = learnt(made, train_on="last_turn")
    ends = {made.decode([end]) for end in end_tokens(made, TextSettings())}
    assert rows[0][-1].endswith(tuple(ends))


def test_without_an_end_of_turn_each_answer_is_an_example_and_that_is_said():
    made = tokenizer(BARE)
    assert learnt(made) == [["two\n<|im_end|>"], ["three\n<|im_end|>"]]
    said = unended(made, TextSettings())
    assert "(the tokenizer's own) ends answers with no control token" in said
    assert "'<|im_end|>', is put behind each, and each is an example" in said
    assert not unended(made, TextSettings(template="plain"))
    assert not any(unended(shape.tokenizer(), TextSettings()) for shape in SHAPES.values())


def test_a_mark_that_leaves_out_the_end_of_the_turn_is_widened_by_that_alone():
    assert learnt(tokenizer(OUTSIDE)) == learnt(tokenizer(MARKED)) == learnt(tokenizer(CHATML))
    assert json.dumps(learnt(tokenizer(OUTSIDE))) == '[["two<|im_end|>", "three<|im_end|>"]]'


def test_plain_text_begins_as_the_tokenizer_lets_it_with_one_space_before_the_response():
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", *"▁QA:\nabcdefghijklmnopqrstuvwxyz?"]
    own = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, [], unk_token="<unk>"))
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    own.normalizer = normalizers.Sequence(space)
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")
    whole = made("Q: hi?\nA: ho")["input_ids"]
    (worded,) = word([Example("hi?", "ho", "")], made, TextSettings(template="plain"))
    (row,) = worded.rows
    assert [*row.ids] == [*whole, made.eos_token_id]
    assert made.convert_ids_to_tokens(row.ids[row.prompt_length :]) == ["▁", "h", "o", "</s>"]
    built_in = tokenizer(None)
    (worded,) = word([Example("hi?", "ho", "")], built_in, TextSettings(template="plain"))
    assert built_in.decode(worded.rows[0].ids) == "Q: hi?\nA: ho<|im_end|>"

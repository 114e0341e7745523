"""Plain prompts and responses follow the tokenizer's habits, as one text; its control tokens in
text are text, by plain wording and by chat templates."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedmoe.data import Example
from fedmoe.data.control import Spelling, control_tokens
from fedmoe.data.conversations import exchange, packed
from fedmoe.data.shown import pieces
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import Worded, prompt_ids, turns, word
from fedmoe.errors import DataError
from tests.support.template_shapes import SHAPES
from tests.support.trained_tokenizers import KINDS, trained

PLAIN = TextSettings(template="plain", max_length=10_000)
EVERY = [(kind, bos) for kind in KINDS for bos in (False, True)]
texts = st.text(alphabet="aQ:1 \n\t.{}<é▁", min_size=1, max_size=10).filter(str.strip)


def spelled(made, text):
    """Ids of a text as a user of the tokenizer has them, its end token in the text."""
    return made(text)["input_ids"]


@pytest.mark.parametrize(("kind", "bos"), EVERY)
@settings(max_examples=25)
@given(texts, texts)
def test_a_pair_is_one_text_that_can_be_generated_from_its_prompt(kind, bos, prompt, response):
    made = trained(kind, bos)
    ((row,),) = [one.rows for one in word([Example(prompt, response, "")], made, PLAIN)]
    before, text = f"Q: {prompt}\nA:", f"Q: {prompt}\nA: {response}<eos>"
    assert [*row.prompt] == spelled(made, before)
    assert row.prompt == prompt_ids(prompt, made, PLAIN)
    whole = spelled(made, text)
    if whole[: row.prompt_length] == [*row.prompt]:
        assert [*row.ids] == whole
    assert made.decode([*row.ids]) == made.decode(whole)
    assert row.ids[-1] == made.eos_token_id
    assert row.ids.count(made.bos_token_id) == bos
    assert row.num_targets == len(row.ids) - row.prompt_length
    shown = pieces(row, made)
    assert "".join(text for text, _ in shown) == made.decode([*row.ids])
    assert [text for text, learnt in shown if not learnt] == [made.decode([*row.prompt])]


@pytest.mark.parametrize(("kind", "bos"), EVERY)
@settings(max_examples=10)
@given(st.lists(texts, min_size=1, max_size=4), st.booleans())
def test_turns_follow_each_other_and_each_answer_is_learnt_with_its_end(kind, bos, said, system):
    made = trained(kind, bos)
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for text in said:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    example = Example(*exchange(messages), "", conversation=packed(messages))
    lines = ["Be brief."] * system + [f"Q: {text}\nA: {text}<eos>" for text in said]
    (found,) = word([example], made, PLAIN)
    assert isinstance(found, Worded)
    assert made.decode([*found.rows[-1].ids]) == made.decode(spelled(made, "\n".join(lines)))
    ends = [row.ids[end - 1] for row in found.rows for _, end in row.learnt]
    assert ends == [made.eos_token_id] * len(said)
    for n, one in enumerate(word(turns(example), made, PLAIN, answers=True)):
        assert isinstance(one, Worded)
        before = [*lines[: n + system], f"Q: {said[n]}\nA:"]
        assert [*one.rows[0].prompt] == spelled(made, "\n".join(before))


def test_the_wording_is_a_setting():
    made = trained("byte-level", True)
    own = TextSettings(template="plain", wording="### Ask\n{prompt}\n### Say\n{response}\n<eos>")
    ((row,),) = [one.rows for one in word([Example("{response}", "b", "")], made, own)]
    assert made.decode([*row.prompt]) == "<bos>### Ask\n{response}\n### Say\n"
    assert made.decode([*row.ids[row.prompt_length :]]) == "b\n<eos>"
    for wrong in ("{prompt}", "{response} {prompt}", "{prompt}{prompt}{response}"):
        with pytest.raises(ValidationError, match=r"wording needs \{prompt\} once, and after it"):
            TextSettings(wording=wrong)
    chat = SHAPES["ChatML"].tokenizer()
    for template in ("auto", "chat"):
        with pytest.raises(DataError, match="and there is a chat template"):
            word([], chat, TextSettings(template=template, wording="{prompt} {response}"))
    useless = TextSettings(template="plain", template_arguments={"a": 1})
    with pytest.raises(DataError, match=r"text\.template_arguments are for a chat template"):
        word([], chat, useless)


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "generation marks"])
def test_control_tokens_in_a_conversation_are_text(name):
    shape, made = SHAPES[name], SHAPES[name].tokenizer()
    control = control_tokens(made)
    said = TextSettings(max_length=10_000, template_arguments=dict(shape.arguments))

    def of(insert):
        first = [{"role": "system", "content": f"{insert} s"}] if shape.system else []
        pairs = [(f"a {insert}", f"{insert}b"), (f"{insert}{insert}", f"c{insert} d")]
        for asked, answer in pairs:
            first += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return Example(*exchange(first), "", conversation=packed(first))

    def acting(one):
        assert isinstance(one, Worded), one
        return [n for row in one.rows for n in row.ids if n in control.values()]

    (harmless,) = word([of("harmless")], made, said)
    for token in [*control][-3:]:
        as_text, to_score = (word([of(token)], made, said, answers=a)[0] for a in (False, True))
        assert acting(as_text) == acting(harmless)
        shown = made.decode([*as_text.rows[-1].ids], skip_special_tokens=False)
        assert f"c{token} d" in shown
        assert to_score.rows[0].prompt == as_text.rows[-1].prompt or not shape.rewrites(None)
        (allowed,) = word([of(token)], made, replace(said, control_tokens="allow"))
        assert len(acting(allowed)) > len(acting(harmless))


@pytest.mark.parametrize(("kind", "bos"), EVERY)
@settings(max_examples=20)
@given(st.lists(st.sampled_from(["<eos>", "<bos>", "<eo", "s>", " ", "<", "a"]), min_size=1))
def test_control_tokens_in_a_plain_prompt_and_response_are_text(kind, bos, parts):
    made, text = trained(kind, bos), "x" + "".join(parts)
    ((row,),) = [one.rows for one in word([Example(text, text, "")], made, PLAIN)]
    assert row.prompt == prompt_ids(text, made, PLAIN)
    control = [n for n in row.ids if n in control_tokens(made).values()]
    assert control == [made.bos_token_id] * bos + [made.eos_token_id]
    shown = made.decode([*row.ids], skip_special_tokens=False)
    assert shown.replace(" ", "").count(text.replace(" ", "")) == 2


def test_what_cannot_be_told_apart_is_refused():
    words = {"<unk>": 0, "<eos>": 1, "a": 2, "Q": 3, "A": 4, ":": 5}
    split = pre_tokenizers.WhitespaceSplit()
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = split
    made = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>", pad_token="<eos>")
    (fault,) = word([Example("a <eos> a", "a", "")], made, PLAIN)
    assert "takes what looks like its control tokens for such" in str(fault)
    with pytest.raises(DataError, match="looks like its control tokens"):
        prompt_ids("a <eos> a", made, PLAIN)
    marked = trained("byte-level")
    (fault,) = word([Example("\ufdd0 <eos>", "a", "")], marked, PLAIN)
    assert "U+FDD0" in str(fault)
    assert isinstance(word([Example("\ufdd0", "a", "")], marked, PLAIN)[0], Worded)
    short = SHAPES["ChatML"].tokenizer()
    short.chat_template = "{% for m in messages %}{{ m.content[:4] }}<|im_end|>{% endfor %}"
    (fault,) = word([Example("a<|im_end|>", "b", "")], short, TextSettings())
    assert "set text.control_tokens: allow" in str(fault)
    (fault,) = word(
        [Example("a<|im_end|>", "b", "")], SHAPES["generation marks"].tokenizer(), TextSettings()
    )
    assert "the chat template marks answers by itself" in str(fault)


def test_space_that_a_control_token_takes_is_taken_by_it_alone():
    made = trained("byte-level", control=("<bos>", "<eos>", "<pad>"))
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(made.backend_tokenizer.to_str())
    )
    copy.add_special_tokens({"eos_token": AddedToken("<end>", rstrip=True, lstrip=True)})
    spelling = Spelling(copy)
    ids = spelling.ids("a <end>  b" + spelling.marked(" <end> c"))
    assert copy.decode(ids, skip_special_tokens=False) == "a<end>b <end> c"
    assert ids.count(copy.eos_token_id) == 1

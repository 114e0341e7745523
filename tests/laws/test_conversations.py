"""Conversations that are too long, hold control tokens or meet odd templates: nothing is silent."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer

import fedmoe.models
from fedmoe.budget.work import work_on
from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.data import Example, HomeAssistant, Memory, ReasoningGym, Splits
from fedmoe.data.conversations import exchange, packed, unpacked
from fedmoe.data.federated import LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.data.shown import length_lines, pieces, template_line
from fedmoe.data.text import TextSettings, Tokens
from fedmoe.data.truncation import without_oldest
from fedmoe.data.wording import Worded, end_tokens, prompt_ids, tokenize_splits, word
from fedmoe.errors import DataError, WireError
from fedmoe.evaluation.evaluate import answer_all
from fedmoe.messages.validation import check_rows
from fedmoe.runs.data import pooled_data
from fedmoe.runs.own_data import OwnData
from fedmoe.training.settings import Training
from tests.support.chat_templates import CHATML, HARMONY, INST, MARKED, THINKING, tokenizer

ROOT = Path(__file__).parents[2]

MADE = tokenizer(CHATML)
LONG = TextSettings(max_length=10_000)


def chat(*texts, system="", first="user"):
    """Messages of a user and the assistant in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def example_of(messages):
    return Example(*exchange(messages), "", conversation=packed(messages))


def learnt(worded, made=MADE):
    """The texts that are learnt of each row."""
    return [[made.decode([*row.ids[a:b]]) for a, b in row.learnt] for row in worded.rows]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=12), st.booleans(), st.integers(40, 120))
def test_oldest_turns_go_first_and_never_the_answer_or_the_system_prompt(lengths, system, most):
    texts = [f"{n}: " + "w " * length for n, length in enumerate(lengths[: len(lengths) // 2 * 2])]
    messages = chat(*texts, system="Be brief." if system else "")
    limits = TextSettings(max_length=most, too_long="truncate")
    (found,) = word([example_of(messages)], MADE, limits)
    kept = len(found.rows[0].ids)
    head, turns = messages[: len(messages) - len(texts)], messages[len(messages) - len(texts) :]
    options = [head + turns[n:] for n in range(0, len(turns), 2)]
    whole = [word([example_of(part)], MADE, LONG)[0] for part in options]
    fitting = [one for one in whole if one.longest <= most] or whole[-1:]
    assert found.rows == fitting[0].rows
    assert found.truncated == (found.rows != whole[0].rows)
    assert found.longest == kept
    text = MADE.decode([*found.rows[0].ids])
    assert texts[-1] in text
    assert texts[-2] in text
    assert ("Be brief." in text) == system


def test_what_is_cut_or_dropped_is_counted():
    short, long = chat("a", "b"), chat(*"cdefghijkl")
    huge = chat("w " * 90, "x")
    rows = tuple(map(example_of, (short, long, huge)))
    limits = TextSettings(max_length=30, too_long="truncate")
    splits, tokens = tokenize_splits(Splits(rows, (rows[0],), (rows[0],)), MADE, limits)
    assert splits.train == rows[:2]
    assert len(tokens["train"]) == 2
    counts = splits.rows
    assert (counts.read, counts.train, counts.too_long, counts.truncated) == (5, 2, 1, 1)
    assert "1 without their oldest turns" in str(counts)
    assert type(counts).checked(counts.as_json()) == counts


def test_a_turn_with_calls_goes_as_a_whole():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    result = {"role": "tool", "content": "1"}
    one = [*chat("a"), call, result, {"role": "assistant", "content": "b"}]
    assert without_oldest([*one, *chat("c", "d")]) == chat("c", "d")
    assert without_oldest(one) is None


@pytest.mark.parametrize("text", ["a<|im_end|>b", "<|im_start|>system"])
def test_control_tokens_in_a_text_are_refused_or_allowed_by_request(text):
    rows = [
        example_of(chat("a", "b", text, "c")),
        example_of(chat("a", text)),
        Example(text, "b", ""),
        Example("a", text, ""),
    ]
    refusing = TextSettings(control_tokens="refuse")
    for fault in word(rows, MADE, refusing):
        assert "which is a control token of the model; set text.control_tokens" in str(fault)
    for plain in word(rows[2:], MADE, TextSettings(template="plain", control_tokens="refuse")):
        assert "control token" in str(plain)
    allowed = word(rows, MADE, TextSettings(control_tokens="allow"))
    assert all(isinstance(one, Worded) for one in allowed)
    good = tuple(example_of(chat(f"a{n}", "b")) for n in range(3))
    every = Splits((*good, *rows), good[:1], good[:1])
    with pytest.raises(DataError, match=r"rows: 4 cannot be worded, of 9; data.unusable=drop"):
        tokenize_splits(every, MADE, refusing)
    dropped, _ = tokenize_splits(every, MADE, refusing, unusable="drop")
    assert (dropped.rows.refused, dropped.rows.read, dropped.train) == (4, 9, good)


def test_templates_are_chosen_as_the_settings_say(tmp_path):
    pair, talk = Example("hi", " ho", ""), example_of(chat("a", "b", "c", "d"))
    bare = tokenizer(None)
    file = tmp_path / "other.jinja"
    file.write_text(INST)

    def texts(example, made, template):
        (found,) = word([example], made, TextSettings(template=template))
        return made.decode([*found.rows[0].ids]) if isinstance(found, Worded) else str(found)

    chatml = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n ho<|im_end|>"
    assert texts(pair, MADE, "auto") == texts(pair, MADE, "chat") == chatml
    assert texts(pair, bare, "auto") == texts(pair, MADE, "plain") == "Q: hi\nA:  ho<|im_end|>"
    assert texts(talk, bare, str(file)).startswith("<|im_start|>[INST] a [/INST] b<|im_end|>")
    assert texts(talk, bare, "auto") == "Q: a\nA: b<|im_end|>\nQ: c\nA: d<|im_end|>"
    opens = example_of(chat("a", "b", "c", first="assistant"))
    assert "set text.template to chat" in texts(opens, MADE, "plain")
    assert texts(example_of(chat("a", "b")), bare, "auto") == "Q: a\nA: b<|im_end|>"
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        texts(pair, bare, "chat")
    with pytest.raises(DataError, match=r"none\.jinja' cannot be read"):
        texts(pair, bare, str(tmp_path / "none.jinja"))
    assert prompt_ids("hi", MADE, LONG) == word([pair], MADE, LONG)[0].rows[0].prompt
    ends = [MADE.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|return|>")]
    assert end_tokens(MADE, LONG) == ends[:1]
    assert end_tokens(tokenizer(HARMONY), LONG) == sorted(ends)
    assert str(file) in template_line(bare, TextSettings(template=str(file)))


def test_arguments_reach_the_template(tmp_path):
    file = tmp_path / "a.jinja"
    file.write_text("{{ mood }}" + CHATML)
    settings = TextSettings(template=str(file), template_arguments={"mood": "calm"})
    (found,) = word([Example("a", "b", "")], MADE, settings)
    assert MADE.decode([*found.rows[0].ids]).startswith("calm<|im_start|>user")


def test_generated_datasets_stay_plain_unless_told():
    for data in (HomeAssistant(), ReasoningGym()):
        assert data.wording(TextSettings()).template == "plain"
        assert data.wording(TextSettings(template="chat")).template == "chat"
    assert Memory(rows=()).wording(TextSettings()).template == "auto"
    examples = [Example("turn it on", "TurnOn", "")]
    (found,) = word(examples, MADE, HomeAssistant().wording(TextSettings()))
    prompt, end = (MADE(t)["input_ids"] for t in ("Q: turn it on\nA:", " TurnOn<|im_end|>"))
    assert [*found.rows] == [Tokens((*prompt, *end), len(prompt))]


def test_an_assistant_may_open_where_the_template_allows():
    opens = example_of(chat("Welcome!", "a", "b", first="assistant"))
    for template in (CHATML, MARKED):
        made = tokenizer(template)
        (found,) = word([opens], made, LONG)
        assert learnt(found, made) == [["Welcome!<|im_end|>", "b<|im_end|>"]]
    (refused,) = word([opens], tokenizer(INST), LONG)
    assert "roles must alternate" in str(refused)


def test_examples_are_shown_whole_with_the_learnt_part_marked(tmp_path, capsys):
    found = word([example_of(chat("a", "b", "c", "d"))], MADE, LONG)[0].rows[0]
    parts = pieces(found, MADE)
    assert "".join(text for text, _ in parts) == MADE.decode([*found.ids])
    assert [text for text, marked in parts if marked] == ["b<|im_end|>", "d<|im_end|>"]
    lines = [*length_lines([Tokens((1,) * 9, 4), found])]
    assert lines[0].startswith("tokens of an example: 9 ")
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": chat(f"{n} a", f"{n} b", f"{n} c", f"{n} d")} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    small = ("rounds=1", "partition.num_clients=2", "evaluation.test_examples=2")
    assert main(["check", "own_rows", f"data.path={path}", *small, "--show", "2"]) == 0
    said = capsys.readouterr().out
    assert "format: conversations, in the column 'messages'" in said
    assert "template: the tokenizer's own, sha256 " in said
    assert said.count("«") == said.count("»") == 1 + 4 + 1
    shown = LocalFiles(path=str(path)).load(0).train
    assert any(f"«{unpacked(e.conversation)[0][1]['content']}<eos>»" in said for e in shown)


def test_a_run_has_an_example_for_each_answer_that_a_template_rewrites(tmp_path):
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING.replace("<|im_end|>", "<eos>"))
    rows = [chat(f"{n} a", f"{n} b", f"{n} c", f"{n} d") for n in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    small = [f"data.path={path}", f"text.template={template}", "partition.num_clients=2"]
    e = load_experiment(ROOT / "configs" / "own_rows.yaml", small)
    made = AutoTokenizer.from_pretrained(Path(fedmoe.models.__file__).parent / "mini")
    data = pooled_data(e, made, "causal")
    trained = [row for own in data.rows.values() for row in own]
    assert len(trained) == 2 * data.counts.train
    assert data.counts.read == 40
    assert sum(map(len, data.facts().lengths)) == len(trained)
    for row in trained:
        assert made.decode(row.ids[row.prompt_length :]).startswith("<think>\n\n</think>\n")
        assert row.ids[-1] == made.eos_token_id
    test = data.sets["test"]
    assert test.held_out == 2 * data.counts.test == len(test.rows)
    assert all(e.response.startswith("<think>") for e in test.examples)
    assert check_rows(data.counts.as_json(), len(trained)) == data.counts
    with pytest.raises(WireError, match="expected as many at least"):
        check_rows(data.counts.as_json(), data.counts.train - 1)


def test_every_part_that_is_learnt_is_in_the_digest_of_a_run():
    rows = Tokens((1, 2, 3, 4), 1), Tokens((1, 2, 3, 4), 1, ((1, 2), (3, 4)))
    assert rows[0].numbers == (1, 1, 2, 3, 4)
    assert rows[0].numbers != rows[1].numbers
    assert work_on(rows, Training()).longest_targets == 3
    assert work_on(rows[1:], Training()).longest_targets == 2


def test_owners_with_conversations_train_and_are_scored_on_each_answer(tmp_path):
    for name in ("berlin", "paris"):
        rows = [chat(f"{name} {n}", "b", "c", f"{n}", system=name) for n in range(20)]
        text = "\n".join(json.dumps({"messages": row}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    e = load_experiment(ROOT / "configs" / "federated.yaml", [f"data.path={tmp_path}"])
    own = OwnData(LocalData(e.data), e, MADE, "causal")
    for name in own:
        data = own.of(name)
        assert len(data.train) == data.counts.train
        assert all(len(row.learnt) == 2 for row in data.train)
        assert data.sets["test"].held_out == 2 * data.counts.test
        assert data.form == "conversations, in the column 'messages'"
        assert all(MADE.decode(row.ids).count(name) >= 2 for row in data.train)


class Numbers:
    """A tokenizer whose texts are ids, with two control tokens."""

    eos_token_id, pad_token_id = 1, 0

    def __init__(self, end):
        self.added_tokens_decoder = {end: AddedToken("<end>", special=True)}

    def decode(self, ids, *, skip_special_tokens):
        return " ".join(map(str, ids))


def test_an_answer_ends_with_the_templates_own_end_of_turn(tiny_model):
    model, prompt = tiny_model(), (5, 6, 8)

    def answer(last, control):
        rows = [Tokens((*prompt, last), len(prompt))]
        return answer_all(model, Numbers(control), rows, 64, 6)[0].split()

    whole = answer(last=2, control=3)
    end = int(whole[2])
    until = whole[: whole.index(whole[2])]
    assert 0 < len(until) < len(whole)
    assert answer(last=end, control=end) == until
    assert answer(last=2, control=end) == whole

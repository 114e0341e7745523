"""Text is learnt as it is written: no space, case, order or number of it changes on the way."""

import csv
import json
from types import SimpleNamespace

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedmoe.cli.main import main
from fedmoe.data import Example, Memory
from fedmoe.data.conversations import unpacked
from fedmoe.data.files import LocalFiles
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import turns, word
from fedmoe.errors import DataError
from fedmoe.export.generate import Generator
from tests.support.chat_templates import CHATML, MARKED, tokenizer

MADE = tokenizer(CHATML)
LONG = TextSettings(max_length=10_000)
SPACES = " \t\n\r\u00a0\u2028\u3000"
texts = st.text(alphabet='aA\u00e9e\u0301\ufb01ß{}\\"<|' + SPACES, min_size=1, max_size=12).filter(
    str.strip
)


def learnt(example, made=MADE, said=LONG):
    """The text of an example, and its learnt parts without their end."""
    (found,) = word([example], made, said)
    (row,) = found.rows
    whole = made.decode([*row.ids], skip_special_tokens=False)
    parts = [made.decode([*row.ids[a : b - 1]]) for a, b in row.learnt]
    return whole, parts


def read(rows, **data):
    return Memory(rows=rows, test_share=0, validation_share=0, **data).load(0).train


@settings(max_examples=25)
@given(texts, texts, texts, texts)
def test_every_format_gives_the_ids_of_the_text_as_it_is(system, asked, between, answer):
    messages = [("system", system), ("user", asked), ("assistant", answer)]
    tool = {"type": "function", "function": {"name": "f", "description": between}}
    rows = [
        {"messages": [{"role": r, "content": t} for r, t in messages], "tools": [tool]},
        {"conversations": [{"from": r, "value": t} for r, t in messages], "tools": [tool]},
        {"system": system, "instruction": asked, "input": "", "output": answer, "tools": [tool]},
        {"system": system, "history": [[between, between]], "prompt": asked, "response": answer},
        {"prompt": [{"role": "user", "content": asked}], "response": answer, "tools": [tool]},
        {"prompt": asked, "response": answer},
    ]
    for row in rows:
        (example,) = read([row])
        whole, parts = learnt(example)
        assert parts[-1] == answer
        assert f"user\n{asked}<|im_end|>" in whole
        assert "system" not in row or f"system\n{system}<|im_end|>" in whole
        assert "tools" not in row or json.dumps(between, ensure_ascii=False) in whole
    (pair,) = read([{"instruction": asked, "input": between, "output": answer}])
    assert learnt(pair)[0].startswith(f"<|im_start|>user\n{asked}\n\n{between}<|im_end|>")


@settings(max_examples=8)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6, unique=True))
def test_every_kind_of_file_gives_the_text_as_it_is(tmp_path_factory, pairs):
    place = tmp_path_factory.mktemp("files")
    rows = [{"prompt": p, "response": r} for p, r in pairs]
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "a.json").write_text(json.dumps(rows, ensure_ascii=False), newline="")
    with (place / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response"), *pairs])
    parquet.write_table(pyarrow.Table.from_pylist(rows), place / "a.parquet")
    for end in ("jsonl", "json", "csv", "parquet"):
        data = LocalFiles(path=str(place / f"a.{end}"), test_share=0, validation_share=0).load(0)
        assert {(e.prompt, e.response) for e in data.train} == {*pairs}
        assert (data.rows.read, data.rows.train) == (len(pairs), len(pairs))


def call(**arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"function": arguments}]}


ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}


def test_arguments_keep_their_order_and_their_numbers():
    text = '{"z": 1.0, "a": -0.5, "m": 12345678901234567890, "u": "\\u00e9\\n", "n": null}'
    for arguments in (text, json.loads(text)):
        (example,) = read([{"messages": [ASKED, call(name="f", arguments=arguments)]}])
        _, (said,) = learnt(example)
        assert said == '<call>{"name": "f", "arguments": ' + text.replace("\\u00e9", "é") + "}"


def test_fields_that_parquet_adds_to_an_object_are_no_arguments(tmp_path):
    calls = [call(name="f", arguments={"x": n} if n % 2 else {"y": [{"z": "b"}]}) for n in range(4)]
    rows = [{"messages": [ASKED, one], "id": n} for n, one in enumerate(calls)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = LocalFiles(path=str(tmp_path / "a.parquet"), test_share=0, validation_share=0).load(0)
    found = [unpacked(e.conversation)[0][1]["tool_calls"][0]["function"] for e in data.train]
    assert found == [one["tool_calls"][0]["function"] for one in calls[:2]] + [
        calls[3]["tool_calls"][0]["function"]
    ]


def test_rows_that_differ_by_case_or_space_alone_are_all_kept():
    rows = [("A b", "c"), ("a b", "c"), ("a  b", "c"), ("a b", "C"), ("a b", "c "), ("a b\n", "c")]
    assert {(e.prompt, e.response) for e in read(rows)} == {*rows}


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_an_answer_of_weight_0_is_read_and_not_learnt(template):
    made = tokenizer(template)
    messages = [ASKED, SAID | {"content": "bad", "weight": 0}, ASKED, SAID]
    (example,) = read([{"messages": messages}])
    whole, parts = learnt(example, made)
    assert "bad" in whole
    assert parts == ["b"]
    assert [turn.response for turn in turns(example)] == ["b"]
    (nothing,) = read([{"messages": messages[:2]}])
    (fault,) = word([nothing], made, LONG)
    assert "each answer has weight 0" in str(fault)
    with pytest.raises(DataError, match=r"message 2 \(assistant\) has weight 0\.5"):
        read([{"messages": [ASKED, SAID | {"weight": 0.5}]}])


def test_what_would_be_lost_is_refused_with_its_place(tmp_path):
    jsonl, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    good = '{"prompt": "a", "response": "b"}\n'
    jsonl.write_text(good + '{"prompt": "a", "prompt": "c", "response": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'prompt' is there twice in one object"):
        LocalFiles(path=str(jsonl)).load(0)
    twice = '{"x": 1, "x": 2}'
    with pytest.raises(DataError, match="arguments of f: 'x' is there twice"):
        read([{"messages": [ASKED, call(name="f", arguments=twice)]}])
    table.write_text("prompt,response,prompt\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv:1: the column 'prompt' is there twice"):
        LocalFiles(path=str(table)).load(0)
    for half in ([("a\ud83d", "b")], [{"messages": [ASKED, SAID | {"content": "\udc00"}]}]):
        with pytest.raises(DataError, match="has half a character"):
            read(half)
    with pytest.raises(DataError, match="'answer' is list"):
        read([{"question": "a", "answer": ["b", "c"]}])


def test_prompts_from_standard_input_keep_their_spaces(monkeypatch, capsys):
    said = []
    monkeypatch.setattr("sys.stdin", ["  a \n", "b"])
    nothing = SimpleNamespace(
        levels=["base"], use=lambda *_: 1, model=None, tokenizer=None, text=None
    )
    monkeypatch.setattr("fedmoe.export.loaded.load_model", lambda *_: nothing)
    monkeypatch.setattr(Generator, "answer", lambda _self, prompt, _most, each: said.append(prompt))
    assert main(["generate"]) == 0
    assert said == ["  a ", "b"]


def test_labels_may_be_numbers():
    examples = read([{"prompt": "a", "response": "b", "site": 3}], label="site")
    assert examples == (Example("a", "b", "3"),)

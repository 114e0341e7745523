"""Text from outside, such as rows, labels, names and words of a command, is checked as it comes."""

import io
import json
import posixpath
import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.data import LocalFiles
from fedmoe.data.columns import MOST_LABEL
from fedmoe.data.memory import Memory
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import prompt_ids
from fedmoe.errors import ConfigError, DataError
from fedmoe.report.trackers import Names

HALF = r"has half a character, '\\ud83d', which UTF-8 cannot write"
GOOD = [{"prompt": f"ask {n}", "response": f"say {n}", "kind": n % 2} for n in range(20)]


def written(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, GOOD), *lines]))
    return str(path)


HALVES = {
    "prompt": {"prompt": "a\ud83d", "response": "b", "kind": "c"},
    "response": {"prompt": "a", "response": "\ud83db", "kind": "c"},
    "label": {"prompt": "a", "response": "b", "kind": "\ud83d"},
}


@pytest.mark.parametrize("part", HALVES)
def test_half_a_character_makes_a_row_unusable(tmp_path, part):
    path = written(tmp_path, json.dumps(HALVES[part]))
    with pytest.raises(DataError, match=rf"rows\.jsonl:21: .*{HALF}"):
        LocalFiles(path=path, label="kind").load(0)
    found = LocalFiles(path=path, label="kind", unusable="drop").load(0)
    assert (found.rows.read, found.rows.refused) == (21, 1)
    with pytest.raises(DataError, match=rf"rows\[0\]: .*{HALF}"):
        Memory(rows=[tuple(HALVES[part].values())]).load(0)


def test_half_a_character_in_a_conversation_makes_it_unusable(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\ud83d"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    with pytest.raises(DataError, match=HALF):
        LocalFiles(path=str(tmp_path / "chat.jsonl")).load(0)


LABELS = {
    "a number": ("1.5", r"'kind' is float 1\.5; expected text or an integer"),
    "no number": ("NaN", "'kind' is float nan; expected text or an integer"),
    "true": ("true", "'kind' is bool True; expected text or an integer"),
    "two lines": (r'"a\nb"', r"'kind' is 'a\\nb'; a label has no control characters"),
    "a null character": (r'"a\u0000"', "a label has no control characters"),
    "an article": (json.dumps("x" * (MOST_LABEL + 1)), "has 201 characters; .*partition by"),
    "nothing": ("null", "'kind' is missing; expected text$"),
    "blank": ('" "', "'kind' is empty"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_an_odd_label_makes_a_row_unusable(tmp_path, kind):
    value, said = LABELS[kind]
    path = written(tmp_path, f'{{"prompt": "a", "response": "b", "kind": {value}}}')
    with pytest.raises(
        DataError, match=rf"1 row\(s\) cannot be used[^\n]*\n.*rows\.jsonl:21: .*{said}"
    ):
        LocalFiles(path=path, label="kind").load(0)


def test_an_integer_is_a_label(tmp_path):
    found = LocalFiles(path=written(tmp_path), label="kind").load(0)
    assert {e.label for e in found.train} == {"0", "1"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "response": "b", "n": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"prompt": "a", "response": "b", "n": ' + "[" * 100_000, "recursion"),
    ],
    ids=["a long integer", "a deep nesting"],
)
def test_json_beyond_what_python_reads_makes_a_row_unusable(tmp_path, line, said):
    path = written(tmp_path, line)
    with pytest.raises(DataError, match=rf"rows\.jsonl:21: broken JSON: .*{said}"):
        LocalFiles(path=path).load(0)
    whole = tmp_path / "rows.json"
    whole.write_text(f"[{line}]")
    with pytest.raises(DataError, match=rf"rows\.json:1: broken JSON: .*{said}"):
        LocalFiles(path=str(whole)).load(0)


@pytest.mark.parametrize("text", [r'model: {path: "a\ud83d"}', r'budget: {tiers: {"\ud83d": {}}}'])
def test_half_a_character_in_a_config_is_a_fault_with_its_place(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"line 1, column \d+: .*{HALF}"):
        load_experiment(tmp_path / "run.yaml")


@pytest.mark.parametrize("value", ["{instruction} {input}", "{instruction}", "[a] {b}"])
def test_braces_on_the_command_line_need_quotes_of_their_own(tmp_path, value, capsys):
    path = written(tmp_path)
    assert main(["check", "own_rows", f"data.path={path}", f"data.prompt={value}"]) == 2
    error = capsys.readouterr().err
    assert f"quotes of its own: 'data.prompt=\"{value}\"'" in error
    assert error.count("data.prompt") == 2
    quoted = [f"data.path={path}", f'data.prompt="{value}"', "data.name=files"]
    assert load_experiment("own_rows", quoted).data.prompt == value


def test_a_misspelt_label_of_conversations_is_one_line(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [json.dumps({"messages": turns, "client": f"site {n}"}) for n in range(300)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"no column 'clint'; did you mean 'client'\?") as caught:
        LocalFiles(path=str(tmp_path / "chat.jsonl"), label="clint").load(0)
    assert "\n" not in str(caught.value)


def test_a_family_that_can_be_trained_is_guessed_before_one_that_cannot(capsys):
    for name, guess in (("qwen4", "'qwen"), ("mixtrl", "'mixtral'"), ("qwen3vl", "'qwen3")):
        assert main(["models", name]) == 2
        error = capsys.readouterr().err
        assert f"did you mean {guess}" in error
        assert "-vl" not in error


def test_a_prompt_that_is_no_text_is_said(capsys, monkeypatch):
    with pytest.raises(DataError, match=f"the prompt .*{HALF}"):
        prompt_ids("a\ud83d", None, TextSettings())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert main(["generate"]) == 2
    assert "the prompts are not UTF-8 text: invalid start byte" in capsys.readouterr().err


@given(st.lists(st.text("a/. (=é\n", max_size=6), max_size=6, unique=True))
@example(["x" * 300, "x" * 301])
@settings(max_examples=50)
def test_every_name_that_a_tracker_gets_is_one_that_mlflow_takes_and_of_one_thing(tiers):
    plain = Names()
    given_names = [f"test/{tier}/score" for tier in tiers]
    told = [plain(name) for name in given_names]
    assert [plain(name) for name in given_names] == told
    assert len({*told}) == len(told)
    for name in told:
        # mlflow.utils.validation: characters, length, and no path with a shorter form.
        assert re.fullmatch(r"[/\w.\- :]+", name)
        assert len(name) <= 250
        assert posixpath.normpath(name) == name
        assert not name.startswith((".", "/"))

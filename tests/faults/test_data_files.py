"""Broken, missing and odd files are refused with the place and the likely fix."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedmoe.data.files import LocalFiles, read_rows
from fedmoe.data.hub import HuggingFace
from fedmoe.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [
    {"instruction": f"do {i}", "input": "" if i % 2 else f"with {i}", "output": f"done {i}"}
    for i in range(40)
]


def load(path, **settings):
    splits = LocalFiles(path=str(path), **settings).load(0)
    return splits.train + splits.validation + splits.test


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path, suffix):
    examples = load(write(tmp_path / f"rows{suffix}", ROWS))
    assert {e.prompt: e.response for e in examples} == {
        f"{r['instruction']}\n\n{r['input']}".strip(): r["output"] for r in ROWS
    }


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"instruction": "i", "context": "c", "response": "r"}, "i\n\nc", "r"),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "again"},
                ]
            },
            "s\n\nu",
            "a",
        ),
    ],
)
def test_the_usual_columns_are_found(tmp_path, row, prompt, response):
    (example,) = load(write(tmp_path / "rows.jsonl", [row]))
    assert (example.prompt, example.response) == (prompt, response)


def test_named_columns_and_templates_are_used(tmp_path):
    rows = [{"a": "one", "b": "two", "c": "three", "kind": "k"}]
    path = write(tmp_path / "rows.json", rows)
    (example,) = load(path, prompt="{a} and {b}", response="c", label="kind")
    assert (example.prompt, example.response, example.label) == ("one and two", "three", "k")


def test_every_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[16] = lines[16][:-4]
    lines[29] = "[1, 2]"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        load(path)
    assert f"{path}:17: broken JSON" in str(error.value)
    assert f"{path}:30: expected an object, got list" in str(error.value)


def test_only_ten_broken_lines_are_listed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" * 25)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value).count("broken JSON") == 10
    assert str(error.value).endswith("and 15 more")


def test_broken_json_says_the_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"prompt": "a", "response": "b"},\n{"prompt": }\n]')
    with pytest.raises(DataError, match=r"rows.json:3: broken JSON"):
        load(path)


def test_rows_with_missing_empty_and_odd_fields_are_all_named(tmp_path):
    rows = [
        {"prompt": "a", "response": "b"},
        {"prompt": "", "response": "b"},
        {"response": "b"},
        {"prompt": "a", "response": 7},
    ]
    with pytest.raises(DataError) as error:
        load(write(tmp_path / "rows.json", rows))
    text = str(error.value)
    assert "3 row(s) cannot be used" in text
    assert "row 2: 'prompt' is empty" in text
    assert "row 3: 'prompt' is missing" in text
    assert "row 4: 'response' is int 7; expected text" in text


def test_unknown_columns_list_what_is_there(tmp_path):
    path = write(tmp_path / "rows.json", [{"request": "a", "reply": "b"}])
    with pytest.raises(DataError, match=r"prompt: no column found.*'request', 'reply'"):
        load(path)
    with pytest.raises(DataError, match=r"no column 'requst'; did you mean 'request'"):
        load(path, prompt="requst", response="reply")


def test_a_csv_row_of_another_width_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\na,b\na\na,b,c\n")
    with pytest.raises(DataError) as error:
        load(path)
    assert f"{path}:3: not as many fields" in str(error.value)
    assert f"{path}:4: not as many fields" in str(error.value)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"hello", r"unknown kind of file; expected one of \.json"),
        ("rows.parquet", b"not parquet", "broken Parquet"),
        ("rows.jsonl", b'{"prompt": "\xff"}', "not UTF-8 text"),
        ("rows.json", b"3", "expected a list of rows, got int"),
        ("rows.json", b"[1]", "row 1: expected an object, got int"),
    ],
)
def test_odd_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "dolly.json", ROWS)
    with pytest.raises(DataError, match=r"no such file; did you mean dolly\.json"):
        load(tmp_path / "doly.json")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "nowhere" / "rows.json")


def test_the_hub_loader_reads_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", ROWS)
    splits = HuggingFace(path=str(tmp_path / "data")).load(0)
    assert splits.train[0].response.startswith("done")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(ROWS)
    with pytest.raises(DataError, match="cannot load split 'tset'"):
        HuggingFace(path=str(tmp_path / "data"), split="tset").load(0)


def test_a_dataset_that_cannot_be_had_comes_with_advice(tmp_path):
    with pytest.raises(DataError, match="Without a network: download it elsewhere"):
        HuggingFace(path=str(tmp_path / "no_such_dataset")).load(0)


@pytest.mark.parametrize(
    ("file", "settings", "num_rows"),
    [("dolly_3k/dolly_3k.json", {"label": "category"}, 2700), ("gsm8k/train.jsonl", {}, 7400)],
)
def test_real_instruction_data_loads(file, settings, num_rows):
    if not (SHARED / file).is_file():
        pytest.skip(f"real data {file} is not in the folder shared/data beside the repository")
    examples = load(SHARED / file, **settings)
    assert num_rows < len(examples) <= len(read_rows(SHARED / file))
    assert all(e.prompt and e.response for e in examples)
    assert all(e.label for e in examples) == bool(settings)

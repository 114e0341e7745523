"""Rows are dropped by request alone and with their reason; errors name the right cause."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedmoe.data import Example, Federated, Given, Memory, partition
from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Splits
from fedmoe.data.federated import LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.data.held_out import check_held_out
from fedmoe.data.hub import HuggingFace
from fedmoe.data.partition import Iid
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts

GOOD = [{"prompt": f"say {n}", "response": str(n)} for n in range(20)]
NULLS = [*GOOD, {"prompt": None, "response": "a"}, {"prompt": "b", "response": None}]


def account(data):
    """The numbers of dropped rows by reason; the others are the twenty good ones."""
    rows = data.load(0).rows
    assert (rows.read, rows.train + rows.validation + rows.test) == (
        20 + sum(rows.dropped.values()),
        20,
    )
    return rows.dropped


def csv_of(lines):
    rows = "".join(f"{row['prompt']},{row['response']}\r\n" for row in GOOD)
    return "prompt,response\r\n" + rows + lines


@pytest.mark.parametrize(
    ("name", "text", "dropped"),
    [
        ("blank.csv", csv_of("\r\n\r\n   \r\n"), {}),
        ("commas.csv", csv_of(",\r\n,\r\n,lone\r\n"), {"empty": 3}),
        ("width.csv", csv_of("one\r\na,b,c\r\n"), {"refused": 2}),
        (
            "rows.jsonl",
            "\n".join(map(json.dumps, NULLS)) + "\n{oops\n[1]\n\n",
            {"empty": 2, "refused": 2},
        ),
        (
            "rows.json",
            json.dumps([*NULLS, "text", {"prompt": 3, "response": ""}]),
            {"empty": 2, "refused": 2},
        ),
    ],
)
def test_unusable_rows_of_a_file_are_refused_or_counted(tmp_path, name, text, dropped):
    path = tmp_path / name
    path.write_bytes(text.encode())
    data = LocalFiles(path=str(path), unusable="drop")
    assert account(data) == dropped
    if dropped:
        said = f"{sum(dropped.values())} row\\(s\\) cannot be used, of .*data.unusable=drop"
        with pytest.raises(DataError, match=said):
            LocalFiles(path=str(path)).load(0)
    else:
        assert account(LocalFiles(path=str(path))) == {}


def test_nulls_of_parquet_and_of_the_hub_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    parquet.write_table(pa.Table.from_pylist([*NULLS, GOOD[3]]), folder / "train.parquet")
    expected = {"repeated": 1, "empty": 2}
    assert account(LocalFiles(path=str(folder / "train.parquet"), unusable="drop")) == expected
    assert account(HuggingFace(path=str(folder), unusable="drop")) == expected
    with pytest.raises(DataError, match="row 21: 'prompt' is missing"):
        HuggingFace(path=str(folder)).load(0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("a", ""), "empty"),
        (("a", None), "empty"),
        (Example("", "b", ""), "empty"),
        (("a", "b", None), "refused"),
        (("a", 3), "refused"),
        ("ab", "refused"),
        (None, "refused"),
    ],
)
def test_unusable_rows_in_memory_are_counted(row, reason):
    pairs = [(good["prompt"], good["response"]) for good in GOOD]
    assert account(Memory(rows=[*pairs, row], unusable="drop")) == {reason: 1}
    assert Memory(rows=[*pairs, row], unusable="drop").in_memory().startswith("21 rows")


def test_a_row_among_mappings_that_is_none_is_the_one_to_blame():
    with pytest.raises(DataError) as error:
        Memory(rows=[*GOOD, ("a", "b")]).load(0)
    assert str(error.value).splitlines()[1:] == [
        "  rows[20]: ('a', 'b'); expected a mapping of columns, as other rows are"
    ]


@pytest.mark.parametrize("unusable", ["refuse", "drop"])
def test_lines_are_blamed_not_columns_where_none_can_be_read(tmp_path, unusable):
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n[1]\n")
    with pytest.raises(DataError) as error:
        LocalFiles(path=str(path), unusable=unusable).load(0)
    assert "2 row(s) cannot be used, of 2\n" in str(error.value)
    assert "rows.jsonl:1: broken JSON" in str(error.value)
    assert "column found" not in str(error.value)


def test_the_rest_of_a_broken_csv_is_never_dropped(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(csv_of('"open,a\nlast,b\n'))
    with pytest.raises(DataError, match=r"rows\.csv:\d+: broken CSV"):
        LocalFiles(path=str(path), unusable="drop").load(0)


def test_no_rows_at_all_are_no_matter_of_clients():
    with pytest.raises(DataError, match=r"data\.rows has no rows"):
        Memory(rows=()).load(0)


def words(count):
    return Memory(rows=[(f"say {n}", str(n)) for n in range(count)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (words(2), "2 different prompt(s) cannot be trained on"),
        (
            words(4),
            "data.validation_share = 0.1 of 4 different prompts is less than one; set it to 0.25",
        ),
        (Memory(rows=words(9).rows, validation_share=0), "data.validation_share is 0"),
        (
            Memory(rows=[(f"{n}", "x", f"{n}") for n in range(20)]),
            "each of 20 label(s) keeps a prompt",
        ),
        (Memory(rows=[*words(2).rows] * 9), "(16 of 18 rows were dropped (16 repeated))"),
    ],
)
def test_an_empty_split_is_explained(data, said):
    with pytest.raises(DataError) as error:
        check_held_out(data, data.load(0))
    assert "no validation examples: " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("count", range(3, 30))
def test_the_share_that_is_advised_is_enough(count):
    data = words(count)
    try:
        check_held_out(data, data.load(0))
    except DataError as error:
        for line in str(error).splitlines():
            name = line.split("data.")[1].split(" ")[0]
            data = replace(data, **{name: float(line.split("set it to ")[1].split(" ")[0])})
    check_held_out(data, data.load(0))


def test_a_dataset_of_ones_own_without_a_split_is_named():
    class Own(Dataset):
        name = "own"

    row = Example("a", "b", "")
    with pytest.raises(DataError, match="no test examples: the dataset 'own' loads none; correct"):
        check_held_out(Own(), Splits((row,), (row,), ()))


class Characters:
    """A tokenizer of characters."""

    eos_token_id, eos_token = 0, "."

    def __call__(self, text, *, add_special_tokens, verbose=False):
        return {"input_ids": [[1] * len(part) for part in text]}


def test_rows_that_are_all_too_long_are_told_with_their_number_and_the_longest():
    a, b, c = ((Example("x" * n, "y", ""),) for n in (30, 50, 40))
    long = Splits(a, b, c)
    for too_long in ("drop", "refuse"):
        with pytest.raises(DataError) as error:
            tokenize_splits(long, Characters(), TextSettings(max_length=20, too_long=too_long))
        assert str(error.value) == (
            "3 of 3 rows have more than text.max_length = 20 tokens (the longest has 59); "
            "raise text.max_length"
        )
    short = TextSettings(max_length=50, too_long="drop")
    with pytest.raises(DataError, match=r"1 of 1 validation examples have more than.*has 59\)"):
        tokenize_splits(long, Characters(), short)
    with pytest.raises(DataError, match=r"1 of 3 rows have .*, or set text.too_long: drop"):
        tokenize_splits(long, Characters(), TextSettings(max_length=50))


def test_too_few_examples_are_explained_by_the_rows_before_clients_are_lowered():
    rows = RowCounts.of(train=3, validation=1, test=1, too_long=75)
    with pytest.raises(DataError) as error:
        partition(Iid(num_clients=8), [""] * 3, 0, rows)
    text = str(error.value)
    assert text.index("75 dropped (75 too long); keep more of them") < text.index("lower partition")
    with pytest.raises(DataError, match=r"client 1 would get no examples.*; give it rows") as error:
        partition(Given(clients=("a", "b")), ["a"], 0)
    assert "num_clients" not in str(error.value)


def test_a_clients_own_files_are_accounted_for_whole(tmp_path):
    folder = tmp_path / "berlin"
    folder.mkdir()
    lines = [*map(json.dumps, [*NULLS, GOOD[0]]), "{oops"]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, [*GOOD, NULLS[-1]])))
    local = LocalData(Federated(path=str(tmp_path), unusable="drop", validation_share=0))
    rows = local.splits("berlin", 0).rows
    assert (rows.read, rows.train, rows.test) == (24 + 21, 20, 0)
    assert rows.dropped == {"repeated": 1 + 20, "empty": 3, "refused": 1}


def test_a_line_that_names_no_client_is_never_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD[0] | {"site": "a"}) + "\n{oops\n")
    local = LocalData(Federated(path=str(path), column="site", unusable="drop"))
    with pytest.raises(DataError, match=r"1 row\(s\) cannot be read"):
        _ = local.names

"""Data split by client: who is where, whose rows are whose, and splits that nobody else changes."""

import csv
import json

import pytest

from fedmoe.budget import Levels, Tier
from fedmoe.data import Federated
from fedmoe.data.federated import LocalData
from fedmoe.errors import ConfigError, DataError


def rows_of(name, number):
    return [{"prompt": f"{name} asks {n}", "response": f"{name} says {n}"} for n in range(number)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three files and a folder of clients, and what is no client's."""
    for name, number in (("berlin", 20), ("paris", 30), ("rome", 12)):
        write(tmp_path / f"{name}.jsonl", rows_of(name, number))
    write(tmp_path / "oslo/train.jsonl", rows_of("oslo", 20))
    write(tmp_path / "oslo/test.jsonl", rows_of("oslo other", 5))
    (tmp_path / "berlin.tools.json").write_text("[]")
    (tmp_path / "README.txt").write_text("notes")
    return tmp_path


def names(**settings):
    return LocalData(Federated(**settings)).names


def test_a_folder_a_glob_a_list_and_a_mapping_name_clients(folder):
    files = {name: f"{folder}/{name}.jsonl" for name in ("rome", "berlin")}
    assert names(path=str(folder)) == ("berlin", "oslo", "paris", "rome")
    assert names(path=f"{folder}/*.jsonl") == ("berlin", "paris", "rome")
    assert names(path=tuple(files.values())) == ("berlin", "rome")
    assert names(path=files) == ("berlin", "rome")
    assert names(path=str(folder), clients=("rome", "berlin")) == ("rome", "berlin")
    assert LocalData(Federated(path=str(folder))).ignored == ("README.txt",)


def test_all_rows_of_a_file_are_its_owners(folder):
    local = LocalData(Federated(path=str(folder)))
    for name, number in (("berlin", 20), ("paris", 30), ("rome", 12)):
        splits = local.splits(name, seed=0)
        every = [*splits.train, *splits.validation, *splits.test]
        assert {e.prompt for e in every} == {row["prompt"] for row in rows_of(name, number)}
        assert splits.rows.read == number
        assert splits.test
        assert splits.validation


def test_an_owner_may_bring_its_own_test_rows(folder):
    splits = LocalData(Federated(path=str(folder))).splits("oslo", seed=0)
    assert [e.prompt for e in splits.test] == [f"oslo other asks {n}" for n in range(5)]
    assert len(splits.train) + len(splits.validation) == 20


def test_an_owners_split_depends_on_its_rows_and_the_seed_alone(folder):
    whole = LocalData(Federated(path=str(folder)))
    alone = LocalData(Federated(path={"paris": f"{folder}/paris.jsonl"}))
    assert whole.splits("paris", 3) == alone.splits("paris", 3)
    assert whole.splits("paris", 3) != whole.splits("paris", 4)
    write(folder / "berlin.jsonl", rows_of("berlin", 5))
    assert LocalData(Federated(path=str(folder))).splits("paris", 3) == whole.splits("paris", 3)


@pytest.mark.parametrize("ids", [("north", "south"), (7, 12)])
def test_a_column_names_clients_in_text_or_integers(tmp_path, ids):
    rows = [row | {"site": ids[n % 2]} for n, row in enumerate(rows_of("any", 40))]
    path = write(tmp_path / "rows.jsonl", rows)
    local = LocalData(Federated(path=str(path), column="site"))
    assert local.names == tuple(sorted(map(str, ids)))
    mine = local.splits(str(ids[1]), 0)
    assert {e.prompt for e in (*mine.train, *mine.validation, *mine.test)} == {
        f"any asks {n}" for n in range(1, 40, 2)
    }


def test_a_column_of_a_csv_file_is_text(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["site", "prompt", "response"])
        writer.writeheader()
        writer.writerows(row | {"site": n % 3} for n, row in enumerate(rows_of("any", 30)))
    assert names(path=str(tmp_path / "rows.csv"), column="site") == ("0", "1", "2")


FAULTS = {
    r"no client's file there": {"path": "{folder}/*.parquet"},
    r"would both be client 'rome'": {"path": ("{folder}/rome.jsonl", "{folder}/old/rome.jsonl")},
    r"no such file; did you mean rome.jsonl": {"path": ("{folder}/roma.jsonl",)},
    r"data.path is empty": {"path": ""},
    r"data.clients lists 'lyon', whose rows are not in .* there are berlin, oslo": {
        "path": "{folder}",
        "clients": ("rome", "lyon"),
    },
    r"column 'site' is None; expected the client's id": {
        "path": "{folder}/rome.jsonl",
        "column": "site",
    },
    r"'a b' cannot be a client's id": {"path": {"a b": "{folder}/rome.jsonl"}},
    r"is a folder without train.jsonl": {"path": {"a": "{folder}/empty"}},
}


@pytest.mark.parametrize("said", FAULTS)
def test_what_cannot_be_clients_is_refused_in_words(folder, said):
    write(folder / "old/rome.jsonl", rows_of("rome", 3))
    (folder / "empty").mkdir()
    fill = json.loads(json.dumps(FAULTS[said]).replace("{folder}", str(folder)))
    fill = {k: tuple(v) if isinstance(v, list) else v for k, v in fill.items()}
    with pytest.raises(DataError, match=said):
        _ = names(**fill)


def test_a_pooled_form_does_not_exist():
    with pytest.raises(DataError, match="each client holds its own rows"):
        Federated(path="x").load(0)


def test_a_tier_by_name_is_listed_default_or_drawn_whoever_else_there_is():
    tiers = {"high": Tier(top_k=4, clients=("berlin", 7)), "low": Tier(top_k=1)}
    rest = Levels(tiers=tiers, default="low")
    assert [rest.tier_of(n, 4, 0) for n in ("berlin", "7", "paris")] == ["high", "high", "low"]
    shares = Levels(tiers={"high": Tier(top_k=4, share=0.3), "low": Tier(top_k=1, share=0.7)})
    drawn = [shares.tier_of(f"site-{n}", 4, seed=0) for n in range(400)]
    assert drawn == [shares.tier_of(f"site-{n}", 4, seed=0) for n in range(400)]
    assert 0.2 < drawn.count("high") / 400 < 0.4
    listed = {"high": Tier(top_k=4, clients=("a",)), "low": Tier(top_k=1, clients=("b",))}
    with pytest.raises(ConfigError, match=r"client 'c' is in no tier; list it, or set"):
        Levels(tiers=listed).tier_of("c", 4, 0)
    twice = {name: Tier(top_k=1, clients=("a",)) for name in ("high", "low")}
    with pytest.raises(ConfigError, match="'a' is also in 'high'"):
        Levels(tiers=twice).tier_of("a", 4, 0)

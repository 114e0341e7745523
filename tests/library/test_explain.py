"""`fedmoe explain` on small runs: the page, the JSON, owners' rows at home, and errors."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from family_models import save, tiny_family

import fedmoe
from fedmoe.budget import Levels
from fedmoe.cli.main import main
from fedmoe.config import Experiment
from fedmoe.data import Federated
from fedmoe.data.files import LocalFiles
from fedmoe.errors import FedMoEError
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.explain.explained import explain
from fedmoe.explain.page import groups, write_explained
from fedmoe.models.families import FAMILIES
from fedmoe.models.memory.subset import Subset
from fedmoe.report.ledger import read_ledger
from fedmoe.system.json_text import json_text

ROWS = [
    {"prompt": f"{('lamp', 'song')[n % 2]} {n}", "response": f"on {n % 3}", "kind": "ab"[n % 2]}
    for n in range(40)
]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run_of(place, tiny_folder, name, **settings):
    usual = {
        "rounds": 2,
        "model": replace(Experiment().model, path=str(tiny_folder)),
        "adapter": fedmoe.LoRA(rank=2),
        "budget": Levels(tiers={"high": fedmoe.Tier(top_k=4), "low": fedmoe.Tier(top_k=1)}),
        "training": fedmoe.Training(steps=2, batch_size=4, probe_examples=4, learning_rate=1e-2),
        "evaluation": EvaluationSettings(every=0, metric="loss", validation_examples=2),
        "simulation": replace(Experiment().simulation, folder=str(place / "runs")),
    }
    return fedmoe.run(Experiment(name=name, **usual | settings)).folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of rows, pooled with a label and by owner."""
    place = tmp_path_factory.mktemp("explained")
    write(place / "rows.jsonl", ROWS)
    (place / "owners").mkdir()
    for n, name in enumerate(("attic", "barn", "cellar")):
        write(place / f"owners/{name}.jsonl", ROWS[n * 13 : n * 13 + 13])
    return place


@pytest.fixture(scope="module")
def pooled(place, tiny_folder):
    """A run on pooled rows with labels, shared out among two clients of unlike k."""
    data = LocalFiles(path=str(place / "rows.jsonl"), label="kind")
    shared = {"name": "iid", "num_clients": 2}
    return run_of(place, tiny_folder, "pooled", data=data, partition=shared)


@pytest.fixture(scope="module")
def federated(place, tiny_folder):
    """A run whose owners have a file each; the last one withholds its scores."""
    folder = run_of(place, tiny_folder, "federated", data=Federated(path=str(place / "owners")))
    number = next(
        j["client"]
        for line in read_ledger(folder / "ledger.jsonl")
        if line["kind"] == "roster"
        for j in line["joined"]
        if j["name"] == "cellar"
    )
    line = {"kind": "withheld", "round": 2, "split": "test", "clients": [number]}
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")
    return folder


def test_a_run_is_explained_by_label_and_owner(pooled, tmp_path, capsys):
    assert main(["explain", str(pooled), "--out", str(tmp_path), "--rows", "24"]) == 0
    said = capsys.readouterr().out
    assert "Labels and the experts that carry them" in said
    assert said.splitlines()[-1] == str(tmp_path / "explain.html")
    found = json.loads((tmp_path / "explain.json").read_text())
    assert [(of["kind"], of["names"]) for of in found["groups"]] == [
        ("label", ["a", "b"]),
        ("owner", ["0", "1"]),
    ]
    assert (found["tier"], found["top_k"], found["num_rows"]) == ("high", 4, 24)
    assert np.shape(found["groups"][0]["lift"]) == (2, 2, 8)
    assert np.shape(found["redundancy"]["similarity"]) == (2, 8, 8)
    assert np.shape(found["recorded"]["distance"]) == (2, 2)
    assert [of["tier"] for of in found["calibration"]] == ["high", "low"]
    with np.load(pooled / "activations.npz") as arrays:
        assert found["recorded"]["tokens"] == arrays["by_client"].tolist()
    # Each is alone with its k, so there is nobody to compare it with.
    assert np.isnan(np.array(found["recorded"]["lift"], dtype=float)).all()
    page = (tmp_path / "explain.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    for caption in ("mean group gives the expert", "it is calibrated", "answers to the same"):
        assert caption in page
    assert not any(str(pooled) in text for text in (page, json.dumps(found)))


def test_the_same_run_is_explained_alike_in_another_call(pooled):
    first, second = (explain(pooled, tier="low", rows=12) for _ in range(2))
    assert json_text(first.as_json()) == json_text(second.as_json())
    assert (first.tier, first.top_k) == ("low", 1)
    assert first.moved.changed.shape == (2,)


def test_other_rows_can_be_routed(pooled, place):
    found = explain(pooled, data=place / "owners", overrides=["data.label=kind"], rows=30)
    assert [(of.kind, of.names) for of in found.groups] == [
        ("label", ("a", "b")),
        ("owner", ("attic", "barn", "cellar")),
    ]
    with pytest.raises(FedMoEError, match=r"none\.jsonl: no such file"):
        explain(pooled, data=place / "none.jsonl")


def test_an_owner_that_withholds_something_is_shown_by_its_counts_alone(federated):
    found = explain(federated)
    kinds = {of.kind: of for of in found.groups}
    assert kinds["owner"].names == ("attic", "barn")
    assert [*kinds] == ["owner", "role"]  # these rows have no label
    assert kinds["role"].names == ("prompt", "response")
    assert found.notes == ("rows of 1 owner(s) that withhold something are not used",)
    assert sorted(found.recorded.names) == ["attic", "barn", "cellar"]


def test_without_rows_what_was_recorded_is_shown_and_said(pooled, federated, place, tmp_path):
    moved = {name: place / f"{name}-away" for name in ("rows.jsonl", "owners")}
    for name, away in moved.items():
        shutil.move(place / name, away)
    try:
        for folder in (pooled, federated):
            found = explain(folder)
            assert (found.groups, found.calibration, found.moved) == ((), (), None)
            assert found.recorded.tokens.sum() > 0
            (note,) = found.notes
            assert "nothing could be measured here" in note
            assert "no such file" in note
            text = write_explained(found, tmp_path).read_text()
            assert "Only what the run recorded can be shown" in text
            assert "Owners&#39; tokens in local training" in text
    finally:
        for name, away in moved.items():
            shutil.move(away, place / name)


def test_rows_of_one_owner_without_labels_are_explained_by_role(pooled, place):
    plain = write(place / "plain.jsonl", ROWS[:16])
    found = explain(pooled, data=plain, overrides=["data.label=''"])
    (roles,) = found.groups
    assert roles.names == ("prompt", "response")
    assert groups(roles).title == "Roles and the experts that carry them"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tier", "hihg"], "'hihg' is not one of"),
        (["data.label=kind"], "data.label=kind: settings are for the rows of --data"),
        (["--rows", "0"], "0 is not in the range"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(pooled, words, said, capsys):
    assert main(["explain", str(pooled), *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["explain", str(tmp_path)]) == 2
    assert "ledger.jsonl" in capsys.readouterr().err


def shared_out(place):
    data = LocalFiles(path=str(place / "rows.jsonl"), label="kind")
    training = fedmoe.Training(steps=1, batch_size=2, probe_examples=2)
    shared = {"partition": {"name": "iid", "num_clients": 2}, "training": training}
    return {"data": data, "rounds": 1} | shared


def test_a_run_without_a_common_model_shows_its_record_and_says_why(place, tiny_folder, capsys):
    personal = {"aggregation": {"name": "fedsa_lora"}, **shared_out(place)}
    folder = run_of(place, tiny_folder, "personal", **personal)
    found = explain(folder)
    assert found.recorded.tokens.sum() > 0
    assert (found.groups, found.calibration) == ((), ())
    assert "'fedsa_lora' has no common model" in found.notes[0]
    assert "Owners" in write_explained(found, folder).read_text()
    assert main(["explain", str(folder), "--data", str(place / "rows.jsonl")]) == 2
    assert "no common model" in capsys.readouterr().err


def test_a_tier_of_subsets_is_not_explained_and_the_others_are(place, tiny_folder, capsys):
    few = fedmoe.Tier(top_k=1, subset=Subset(keep=3))
    tiers = {"high": fedmoe.Tier(top_k=4), "low": few}
    settings = shared_out(place)
    folder = run_of(place, tiny_folder, "subset", budget=Levels(tiers=tiers), **settings)
    found = explain(folder, rows=12)
    assert (found.tier, found.num_rows) == ("high", 12)
    assert [of.tier for of in found.calibration] == ["high"]
    (note,) = found.notes
    assert note == "measured without tier 'low': each of its clients keeps experts of its own"
    assert main(["explain", str(folder), "--tier", "low"]) == 2
    assert "'low'" in capsys.readouterr().err
    alone = run_of(place, tiny_folder, "alone", budget=Levels(tiers={"low": few}), **settings)
    (note,) = explain(alone).notes
    assert "nothing could be measured here" in note


def test_an_encoder_decoder_is_explained_by_its_stacks(place, tmp_path):
    base = save(tiny_family(FAMILIES["nllb-moe"], vocab_size=4096), tmp_path / "base")
    budget = Levels(tiers={"high": fedmoe.Tier(top_k=2)})
    folder = run_of(place, base, "stacks", budget=budget, **shared_out(place))
    found = explain(folder, rows=16)
    assert [of.kind for of in found.groups] == ["label", "owner"]
    assert found.num_layers == len(found.moved.changed) == found.recorded.tokens.shape[1]
    assert [of.top_k for of in found.calibration] == [2]
    bare = write(place / "bare.jsonl", [{k: row[k] for k in row if k != "kind"} for row in ROWS])
    roles = explain(folder, data=bare, overrides=["data.label=''"], rows=4)
    assert roles.groups == ()  # prompt and response are not told apart in its stacks
    assert "there are no groups to compare" in roles.notes[0]
    assert write_explained(roles, folder).is_file()

"""`fedmoe compare` as a user types it, on the built-in model and data, kept small."""

import io
import json
from pathlib import Path

import pytest
from watched import end, header, write

from fedmoe.cli.main import main
from fedmoe.comparison import run_comparison
from fedmoe.comparison.config import Comparison
from fedmoe.comparison.plan import results_of, search_of
from fedmoe.comparison.runs import has_ended
from fedmoe.comparison.search import choose
from fedmoe.comparison.study import Trial
from fedmoe.config import Experiment
from fedmoe.config.load import load
from fedmoe.config.schema import Simulation
from fedmoe.errors import FedMoEError
from fedmoe.runs.identity import settings_digest
from fedmoe.system.files import write_json

ROOT = Path(__file__).parents[2]
SMALL = [
    "rounds=1",
    "training.steps=2",
    "training.batch_size=2",
    "data.per_domain=40",
    "evaluation.validation_examples=2",
    "evaluation.test_examples=4",
    "evaluation.every=0",
    "evaluation.max_new_tokens=1",
    "training.probe_examples=2",
    "clients_per_round=2",
    "simulation.workers=1",
]

RANKS = "budget.tiers={high: {top_k: 2, rank: 8}, low: {top_k: 2, rank: 2}}"


def comparison(tmp_path, **changes):
    """A YAML file of two variants of the small run, one seed."""
    fields = {
        "experiment": str(ROOT / "configs/quickstart.yaml"),
        "folder": str(tmp_path / "runs"),
        "overrides": SMALL,
        "seeds": [3],
        "reference": "plain",
        "variants": {"plain": ["aggregation.name=fedavg"], "small": ["upload.name=int8"]},
    }
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps(fields | changes))  # JSON is YAML
    return str(path)


def test_a_comparison_runs_what_is_missing_and_refuses_other_settings(
    tmp_path, capsys, monkeypatch
):
    assert main(["compare", comparison(tmp_path), "--quiet"]) == 0
    folder = tmp_path / "runs/comparison"
    first, ledgers = capsys.readouterr().out, sorted(folder.glob("*/ledger.jsonl"))
    assert "| plain | " in first
    assert len(ledgers) == 2
    assert "<svg" in (folder / "plots/expert-load.svg").read_text()
    monkeypatch.setattr("fedmoe.comparison.files.draw_case", lambda case: [])  # it takes seconds
    before = {path: path.stat().st_mtime_ns for path in ledgers}
    torn = ledgers[1].read_text().splitlines(keepends=True)
    ledgers[1].write_text("".join(torn[:-1]))  # as an interrupted run leaves it
    (ledgers[1].parent / "seal.json").unlink()
    # How many workers train changes no bit: a run that ended is kept.
    more = [*SMALL[:-1], "simulation.workers=2"]
    assert main(["compare", comparison(tmp_path, overrides=more), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns == before[path] for path in ledgers} == {
        ledgers[0]: True,
        ledgers[1]: False,
    }
    runs = json.loads((folder / "comparison.json").read_text())["cases"][0]["runs"]
    assert [run["variant"] for run in runs] == ["plain", "small"]
    assert runs[1]["bytes_up"] < 0.3 * runs[0]["bytes_up"]
    assert runs[0]["data_sha256"] == runs[1]["data_sha256"]
    assert len(runs[0]["clients"]) == 8
    page = (folder / "comparison.html").read_text()
    assert "Average all clients by data size" in page
    assert main(["compare", comparison(tmp_path), "overrides=[rounds=2]", "--quiet"]) == 2
    assert "other settings" in capsys.readouterr().err
    about = ledgers[1].with_name("environment.json")
    said = json.loads(about.read_text())
    for name, what in (("model", "base model"), ("data", "examples")):
        about.write_text(json.dumps(said | {"identity": said["identity"] | {name: "changed"}}))
        assert main(["compare", comparison(tmp_path), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert f"small, seed 3 is a run with other {what} than plain, seed 3 (changed" in error
    about.write_text(json.dumps(said | {"code": "older"}))
    assert main(["compare", comparison(tmp_path), "--quiet"]) == 2
    assert "other code" in capsys.readouterr().err


@pytest.mark.usefixtures("uncharted")
def test_the_best_point_of_a_search_is_used_for_the_results(tmp_path, capsys):
    config = comparison(
        tmp_path,
        variants={"plain": ["aggregation.name=fedavg"]},
        cases={"many": ["clients_per_round=3"]},
        search={
            "grid": {"training.learning_rate": [1e-9, 1e-2]},
            "seed": 7,
            "widened": 0,
            "overrides": ["evaluation.every=1", "training.steps=4", "evaluation.test_examples=1"],
        },
    )
    assert main(["compare", config]) == 0
    out = capsys.readouterr().out
    assert "2 of 2: search, plain, training.learning_rate=0.01" in out
    assert "1 of 1: many, plain, seed 3" in out
    tree = json.loads((tmp_path / "runs/comparison/comparison.json").read_text())
    assert [(t["settings"], t["chosen"]) for t in tree["search"]["trials"]] == [
        (["training.learning_rate=1e-09"], False),
        (["training.learning_rate=0.01"], True),
    ]
    assert [len(c["runs"]) for c in tree["cases"]] == [1]
    chosen = tmp_path / "runs/comparison/0-many/0-plain-seed3/config.yaml"
    assert "learning_rate: 0.01" in chosen.read_text()
    assert "clients_per_round: 3" in chosen.read_text()
    page = (tmp_path / "runs/comparison/comparison.html").read_text()
    assert page.count('<h2 class="case">') == 1
    assert "Search for hyper-parameters" in page
    assert "seed 7" in page


@pytest.mark.usefixtures("uncharted")
def test_a_comparison_is_an_object_that_runs_without_a_word(tmp_path, capfd):
    asked = Comparison(
        name="mine",
        folder=str(tmp_path),
        experiment="quickstart.yaml",
        overrides=tuple(SMALL),
        seeds=(3,),
        variants={"plain": ("aggregation.name=fedavg",)},
        reference="plain",
    )
    folder = run_comparison(asked, ROOT / "configs/any.yaml")
    assert folder == tmp_path / "mine"
    assert "plain" in (folder / "comparison.md").read_text()
    assert (folder / "comparison.html").exists()
    assert capfd.readouterr().out == ""


def test_what_a_run_says_of_itself_is_read_where_text_is_ascii(tmp_path, monkeypatch):
    """As in the C locale, where Python is told not to take UTF-8 all the same."""
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")
    experiment = Experiment(name="run", simulation=Simulation(folder=str(tmp_path)))
    folder = write(tmp_path / "run", header(), end())
    said = {"requested": settings_digest(experiment), "machine": "Zürich", "code": "another"}
    write_json(folder / "environment.json", said)
    (folder / "config.yaml").touch()
    with pytest.raises(FedMoEError, match="holds a run of other code"):
        has_ended(experiment)


def test_every_variant_has_the_same_points_seeds_and_cases(tmp_path):
    path = Path(
        comparison(
            tmp_path,
            seeds=[0, 1],
            cases={"few": [], "many": ["clients_per_round=3"]},
            search={
                "grid": {"training.steps": [1, 2], "training.learning_rate": [0.1]},
                "overrides": ["evaluation.every=1"],
            },
        )
    )
    asked = load(Comparison, path)
    points = {(r.variant, r.settings): r.experiment for r in search_of(asked, path)}
    assert len(points) == 4
    assert {settings for _, settings in points} == {
        ("training.steps=1", "training.learning_rate=0.1"),
        ("training.steps=2", "training.learning_rate=0.1"),
    }
    assert {e.seed for e in points.values()} == {1000}
    runs = results_of(asked, path, {"small": ("training.steps=2",)})
    order = [(r.experiment.seed, r.case, r.variant) for r in runs]
    assert order == [(s, c, v) for s in (0, 1) for c in ("few", "many") for v in ("plain", "small")]
    assert [r.experiment.training.steps for r in runs[:2]] == [2, 2]
    folders = {(r.experiment.simulation.folder, r.experiment.name) for r in runs}
    assert len(folders) == len(runs)


def test_the_best_trial_has_the_lowest_loss_then_the_highest_score():
    scores = [("a", 0.9, 2.0), ("a", 0.3, 1.0), ("a", 0.4, 1.0), ("b", 0.1, 3.0), ("b", 0.1, 3.0)]
    trials = choose([Trial(v, (str(i),), s, x) for i, (v, s, x) in enumerate(scores)])
    assert [t.chosen for t in trials] == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reference": "plane"}, "'plane' is not one of the variants"),
        ({"variants": {"plain": ["rouns=3"]}}, "variants.plain: rouns"),
        ({"cases": {"a": ["rouns=3"]}}, "cases.a, variants.plain: rouns"),
        ({"seeds": [1, 1]}, "repeat"),
        ({"experiment": "none.yaml"}, "none.yaml"),
        (
            {"variants": {"plain": [], "other": ["partition.alpha=0.1"]}},
            "variants.other: partition: differs from 'plain'",
        ),
        (
            {"cases": {"b": []}, "variants": {"plain": [], "other": ["adapter.rank=2"]}},
            "cases.b, variants.other: adapter: differs from 'plain'",
        ),
        (
            {"variants": {"plain": [], "one": ["budget.tiers={all: {top_k: 2}}"]}},
            "variants.one: budget.tiers",
        ),
        (
            {
                "variants": {
                    "plain": [],
                    "none": {"baseline": "alone", "overrides": ["server_optimizer.name=adam"]},
                }
            },
            "variants.none: server_optimizer.name: 'adam' has nothing to step by",
        ),
        (
            {"variants": {"plain": [], "buffer": ["aggregation.name=fedbuff"]}},
            "variants.buffer: devices: missing: aggregation.name 'fedbuff' goes by",
        ),
        (
            {"overrides": [*SMALL, RANKS], "variants": {"plain": ["aggregation.name=fedavg"]}},
            "'fedavg' cannot combine",
        ),
        (
            {"overrides": [*SMALL, "budget.tiers={high: {top_k: 99}, low: {top_k: 1}}"]},
            "variants.plain: budget.tiers.high.top_k",
        ),
        ({"search": {"grid": {"training.steps": [1]}, "seed": 3}}, "search.seed 3 is one of"),
        ({"search": {"grid": {"training.steps": [1]}}}, "evaluation.every: is 0"),
        ({"search": {"grid": {"training.stps": [1]}}}, "did you mean training.steps"),
        (
            {
                "search": {"grid": {"training.steps": [1]}, "overrides": ["evaluation.every=1"]},
                "variants": {"plain": ["training.steps=2"]},
            },
            "variants.plain: training.steps: is what the search chooses",
        ),
        ({"target": 40}, "target"),
    ],
)
def test_a_comparison_that_cannot_be_is_explained(tmp_path, capsys, changes, expected):
    assert main(["compare", comparison(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()

"""A strategy, a dataset and a metric of somebody's own: objects in Python, and names in YAML."""

import sys
from dataclasses import replace

import pytest
from own_components import install, on_path, write_components, write_config

from fedmoe.aggregation import Strategy
from fedmoe.budget import Levels, Tier
from fedmoe.cli.main import main
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.schema import Simulation
from fedmoe.data import Example, Given, Memory, load_splits
from fedmoe.errors import CheckpointError, DataError, FedMoEError
from fedmoe.evaluation.metric import checked
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.prepare import prepare
from fedmoe.runs.session import run
from fedmoe.training.settings import Training


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The working folder, with components that nothing but `fedmoe` finds."""
    folder = write_components(tmp_path / "own")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with on_path(folder):
        sys.path.remove(str(folder))
        yield folder
        sys.path.insert(0, str(folder))


def ledger_of(folder):
    return read_ledger(folder / "ledger.jsonl")


def carried_out(experiment, resume="no"):
    """The run's folder."""
    return run(experiment, resume=resume)


@pytest.fixture
def small(tiny_folder, tmp_path):
    """One round of an experiment on rows in memory, with changes."""
    rows = [(f"say {'la ' * (i % 4)}{i}", f"ok {i}") for i in range(30)]

    def make(**changes):
        settings = {
            "rounds": 1,
            "model": ModelSettings(path=str(tiny_folder)),
            "adapter": LoRA(rank=2),
            "data": Memory(rows=rows),
            "partition": {"name": "iid", "num_clients": 2},
            "budget": Levels(tiers={"high": Tier(top_k=4)}),
            "training": Training(steps=1, batch_size=2, probe_examples=2),
            "evaluation": EvaluationSettings(every=0, test_examples=2, max_new_tokens=2),
            "simulation": Simulation(folder=str(tmp_path / "runs")),
        }
        return Experiment(**settings | changes)

    return make


def test_a_folder_of_ones_own_is_used_from_yaml_by_the_command(own, tiny_folder):
    config = write_config(own, tiny_folder)
    assert main(["run", str(config), "--quiet"]) == 0
    records = ledger_of(own / "runs/own")
    assert records[0]["strategy"] == "my_rules:Median"
    assert records[-1]["kind"] == "end"
    scores = [r["score"] for r in records if r["kind"] == "evaluation"]
    assert scores
    assert min(scores) >= 0.5  # the metric's, not an exact match's
    text = (own / "runs/own/config.yaml").read_text()
    assert "name: my_data:Sums\n  most: 8\n" in text
    assert "name: my_rules:Median\n  step: 0.5\n" in text
    # What a run wrote down runs again, to the same bits; and is resumed, having ended.
    again = ["run", "runs/own/config.yaml", "--quiet", "name=again"]
    assert main(again) == 0
    assert ledger_of(own / "runs/again")[-1]["adapter_sha256"] == records[-1]["adapter_sha256"]
    assert main([*again, "--resume", "auto"]) == 0


def test_a_run_whose_code_was_changed_is_not_resumed(own, tiny_folder, capsys):
    config = write_config(own, tiny_folder)
    assert main(["run", str(config), "--quiet"]) == 0
    (own / "my_rules.py").write_text((own / "my_rules.py").read_text() + "# changed\n")
    assert main(["run", str(config), "--quiet", "--resume", "auto"]) == 2
    assert "changed since: components" in capsys.readouterr().err


def test_entry_points_of_an_installed_package_are_used_from_yaml(own, tiny_folder):
    points = {
        "fedmoe.strategies": {"my_median": "my_rules:Median"},
        "fedmoe.metrics": {"length": "my_rules:length"},
        "fedmoe.datasets": {"sums": "my_data:Sums"},
    }
    install(own, points)
    sys.path.insert(0, str(own))
    config = write_config(own, tiny_folder, strategy="my_median", metric="length")
    config.write_text(config.read_text().replace("my_data:Sums", "sums"))
    experiment = load_experiment(config)
    assert experiment.aggregation.name == "my_rules:Median"
    folder = carried_out(experiment)
    assert ledger_of(folder)[-1]["kind"] == "end"


def test_a_missing_folder_is_told_with_what_to_do(own, tiny_folder, tmp_path, monkeypatch, capsys):
    config = write_config(own, tiny_folder)
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(config), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "3 fault(s)" in said
    assert "aggregation.name: there is no module 'my_rules' here" in said
    assert "data.name: there is no module 'my_data' here" in said
    assert "evaluation.metric.name: there is no module 'my_rules' here" in said


class Mean(Strategy):
    """The plain mean of the updates of equal clients."""

    def combine(self, adapter, updates, num_clients=0):
        held = list(updates)
        flat = adapter.flat + sum(update.delta.flat for update in held) / len(held)
        return replace(adapter, flat=flat)


def test_objects_are_used_in_python(small):
    asked = []

    def metric(example, answer):
        asked.append((example, answer))
        return 0.25

    class Local(Mean):
        pass

    experiment = small(aggregation=Local())
    folder = carried_out(
        replace(experiment, evaluation=replace(experiment.evaluation, metric=metric))
    )
    records = ledger_of(folder)
    assert {r["score"] for r in records if r["kind"] == "evaluation"} == {0.25}
    assert {r["strategy"] for r in records if r["kind"] == "run"} == {Local().name}
    assert all(isinstance(e, Example) and isinstance(a, str) for e, a in asked)
    text = (folder / "config.yaml").read_text()
    assert "from: memory (it is defined inside a function" in text
    assert "  name: memory\n  from: memory (30 rows, sha256:" in text


def test_a_run_of_code_that_nobody_can_compare_is_not_resumed(small):
    class Local(Mean):
        pass

    experiment = small(aggregation=Local())
    carried_out(experiment)
    with pytest.raises(CheckpointError, match=r"aggregation is .*Local', and it is defined inside"):
        carried_out(experiment, "auto")
    carried_out(experiment, "anyway")


def test_rows_in_memory_are_resumed_if_they_are_the_same(small):
    experiment = small()
    first = carried_out(experiment)
    assert carried_out(experiment, "auto") == first
    other = replace(experiment, data=Memory(rows=[*experiment.data.rows, ("one", "more")]))
    with pytest.raises(CheckpointError, match=r"changed since: config \(.*\), data"):
        carried_out(other, "auto")


@pytest.mark.parametrize("found", ["good", None, 1.5, -0.1, float("nan")])
def test_a_metric_that_gives_no_share_is_refused(found):
    example = Example("hi", "ho", "")
    with pytest.raises(FedMoEError, match=r"evaluation\.metric gives .* for the answer 'hm'; a sc"):
        checked(lambda e, a: found)(example, "hm")
    assert checked(lambda e, a: True)(example, "hm") == 1.0


def test_the_score_of_a_run_is_checked(small):
    experiment = small(evaluation=EvaluationSettings(test_examples=1, metric=lambda e, a: 7))
    with pytest.raises(FedMoEError, match="gives 7 for the answer"):
        carried_out(experiment)


def test_without_a_metric_the_datasets_own_score_counts(small):
    experiment = small()
    named = replace(experiment, evaluation=replace(experiment.evaluation, metric="exact_match"))
    scores = []
    for asked in (experiment, named):
        records = ledger_of(carried_out(asked))
        scores.append([r["score"] for r in records if r["kind"] == "evaluation"])
    assert scores[0] == scores[1]


def test_each_clients_rows_stay_its_own(small):
    clients = {
        "site-10": [("hello", "ten"), ("only ten", "10")],
        "site-2": [("hello", "two"), ("only two", "2"), ("more of two", "2")],
    }
    data = Memory.of_clients(clients, validation=[("a", "b")], test=[("c", "d"), ("e", "f")])
    experiment = small(data=data, partition=Given(clients=tuple(clients)))
    prepared = prepare(experiment)
    held = [
        sorted(prepared.setup.tokenizer.decode(row.ids[: row.prompt_length]) for row in rows)
        for rows in prepared.client.rows.values()
    ]
    assert held == [
        ["Q: hello\nA:", "Q: only ten\nA:"],
        ["Q: hello\nA:", "Q: more of two\nA:", "Q: only two\nA:"],
    ]
    splits = load_splits(data, 0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [5, 1, 2]
    with pytest.raises(DataError, match=r"label 'site-2' is no client of partition\.clients"):
        prepare(small(data=data, partition=Given(clients=("site-10",))))
    with pytest.raises(DataError, match="client 2 would get no examples"):
        prepare(small(data=data, partition=Given(clients=(*clients, "site-3"))))


ROWS = {
    "pairs": [("a", "b"), ("c", "d")],
    "labelled": [["a", "b", "x"], ["c", "d", "y"]],
    "columns": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}],
    "examples": [Example("a", "b", "x"), Example("c", "d", "y", group="g")],
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_any_kind_are_taken(kind):
    data = Memory(rows=ROWS[kind], test_share=0, validation_share=0)
    found = data.load(0).train
    assert [(e.prompt, e.response) for e in found] == [("a", "b"), ("c", "d")]
    assert [e.label for e in found] == (
        ["x", "y"] if kind in ("labelled", "examples") else [""] * 2
    )


@pytest.mark.parametrize("row", ["ab", ("a",), ("a", ""), ("a", 3), None, ("a", "b", "c", "d")])
def test_rows_that_cannot_be_used_are_told_by_place(row):
    with pytest.raises(DataError, match=r"rows\[1\]: .*; expected \(prompt, response\)"):
        Memory(rows=[("a", "b"), row]).load(0)


def test_rows_that_leak_into_the_test_are_refused():
    with pytest.raises(DataError, match="prompt 'A' is in train and again in test"):
        load_splits(Memory(rows=[("a", "b"), ("a", "c")], test=[("A", "b")]), 0)


def test_a_dataset_that_loads_as_something_else_is_refused(small):
    class Wrong(type(small().data).__mro__[2]):
        def load(self, seed):
            return [("a", "b")]

    with pytest.raises(DataError, match=r"loads as list; its `load` should return"):
        load_splits(Wrong(), 0)

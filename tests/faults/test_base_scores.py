"""Scores of the base model that runs share: the same ones, only where nothing of them changed."""

import json
import math
from dataclasses import replace

import pytest
from sides import changed

from fedmoe.config import load_experiment
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.report.ledger import read_ledger
from fedmoe.runs import session
from fedmoe.runs.base_scores import FOLDER, read_scores, scores_file, write_scores
from fedmoe.runs.display import Display
from fedmoe.runs.identity import identity
from fedmoe.runs.prepare import prepare


class Notes(Display):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def noted(self, notes):
        self.said += notes


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_folder):
    """One round of one step."""
    home = tmp_path_factory.mktemp("base-scores")
    rows = [{"prompt": f"{a} plus {b}", "response": f"{a + b}"} for a in range(6) for b in range(4)]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = home / "small.yaml"
    path.write_text(
        f"""\
name: run
rounds: 1
model: {{path: {tiny_folder}}}
adapter: {{rank: 4}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{top_k: 1}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {home / "runs"}}}
"""
    )
    return path


def base_line(folder):
    lines = [r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] == "evaluation"]
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in lines if line["round"] == 0
    ]


def test_a_second_run_takes_them_and_says_so_unless_they_are_damaged(config):
    folders, said = [], []
    for overrides in ([], ["training.steps=2"], []):
        display = Notes()
        folders.append(session.run(load_experiment(config, overrides), display))
        said.append([note for note in display.said if "was tested by an earlier run" in note])
        (path,) = (folders[0].parent / FOLDER).iterdir()
        if len(folders) == 2:
            path.write_bytes(path.read_bytes()[:-9])  # as a disk may leave it that lost its power
    assert [len(notes) for notes in said] == [0, 1, 0]
    assert str(path) in said[1][0]
    assert base_line(folders[0]) == base_line(folders[1]) == base_line(folders[2]) != []
    assert len(read_scores(path)) == 2


@pytest.fixture(scope="module")
def prepared(config):
    return prepare(load_experiment(config))


def file_of(prepared, of_identity=None, test=None, state=None, experiment=None):
    run = changed(prepared, experiment=experiment or prepared.setup.experiment)
    found = identity(run.server) | (of_identity or {})
    sets, state = prepared.scorer.sets, state or run.server.first_state()
    return scores_file(run.server, found, test or sets["test"], state)


@pytest.mark.parametrize(
    "other",
    [
        *(
            {"of_identity": {name: "other"}}
            for name in ("code", "libraries", "device", "processor", "threads", "model", "data")
        ),
        "test",
        "state",
        {"evaluation": {"max_new_tokens": 2}},
        {"budget": {"tiers": {"high": {"top_k": 3}, "low": {"top_k": 1}}}},
        {"seed": 1},
    ],
    ids=str,
)
def test_whatever_they_depend_on_is_part_of_their_name(prepared, other, config):
    if other == "test":
        test = prepared.scorer.sets["test"]
        first = replace(test.examples[0], label="another")
        other = {"test": replace(test, examples=(first, *test.examples[1:]))}
    elif other == "state":
        state = prepared.server.first_state()
        adapter = replace(state.adapter, flat=state.adapter.flat + 1)
        other = {"state": replace(state, adapter=adapter)}
    elif "of_identity" not in other:
        ((name, value),) = other.items()
        made = load_experiment(config, [f"{name}={json.dumps(value)}"])
        other = {"experiment": made}
    assert file_of(prepared, **other) not in (None, file_of(prepared))


def test_what_trains_is_not_and_where_there_is_no_common_base_nothing_is_shared(prepared, config):
    trains = ["training.steps=9", "rounds=7", "name=other", "robust={name: krum}", "quorum=0.5"]
    assert file_of(prepared, experiment=load_experiment(config, trains)) == file_of(prepared)
    assert file_of(prepared, experiment=load_experiment(config, ["rounds=0"])) is None
    personal = load_experiment(config, ["aggregation.name=fedsa_lora"])
    assert file_of(prepared, experiment=personal) is None


def test_scores_come_back_as_they_were_but_for_their_time(tmp_path):
    score = Evaluation(
        0, "test", "low", 1, 0.1 + 0.2, math.nan, 2, 3.0, {"a": 1.0}, each=(1.0, 0.5)
    )
    write_scores(tmp_path / FOLDER / "x.json", [score])
    (found,) = read_scores(tmp_path / FOLDER / "x.json")
    assert repr(found) == repr(replace(score, seconds=0.0))
    assert read_scores(tmp_path / "none.json") == []

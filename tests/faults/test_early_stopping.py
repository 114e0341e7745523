"""A run that ends early: when, with which words, and the same after any interruption."""

import json
import math
from dataclasses import replace

import pytest

from fedmoe.comparison.result import read_result
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.evaluation.early_stopping import EarlyStopping
from fedmoe.report.facts import facts, status
from fedmoe.report.ledger import read_ledger
from fedmoe.report.run import read_run
from fedmoe.runs import session
from fedmoe.runs.display import Display


def lines(*values, metric="loss", split="validation", **more):
    """Evaluations of two tiers around each value, after rounds 1, 2 and so on."""
    return [
        {"round": n, "split": split, "loss": 1.0, **more, metric: value + side}
        for n, value in enumerate(values, 1)
        for side in (-0.5, 0.5)
    ]


@pytest.mark.parametrize(
    ("rule", "values", "stops_after"),
    [
        (EarlyStopping(patience=2), (3, 2, 2.5, 2.1, 1.9), 4),
        (EarlyStopping(patience=2), (3, 2, 2.5, 1.9, 2.0), None),
        (EarlyStopping(patience=1, min_delta=0.5), (3, 2.5, 2.4), 2),
        (EarlyStopping(patience=1, min_delta=0.4), (3, 2.5, 2.0), None),
        (EarlyStopping(metric="score", patience=1), (0.1, 0.2, 0.2), 3),
        (EarlyStopping(metric="perplexity", goal="lower", patience=1), (9, 8, 8.5), 3),
        (EarlyStopping(patience=2), (math.nan, 2, math.nan, 1.5), None),
        (EarlyStopping(patience=2), (2, math.nan, math.nan), 3),
    ],
)
def test_it_stops_when_patience_is_over_and_not_before(rule, values, stops_after):
    found = lines(*values, metric=rule.metric)
    if rule.metric == "perplexity":
        found = [{**line, "metrics": {"perplexity": line.pop("perplexity")}} for line in found]
    first = next(
        (n for n in range(1, len(values) + 1) if rule.reason(found[: 2 * n], "validation")), None
    )
    assert first == stops_after
    assert not rule.reason(found, "server")  # other rows decide nothing


def test_what_is_not_finite_counts_alike_in_memory_and_in_the_ledger():
    rule = EarlyStopping(patience=1)
    kept, read = lines(math.inf, 2), lines(1, 2)
    read = [line | {"loss": None} if line["round"] == 1 else line for line in read]
    for found in (kept, read):
        assert "nan now" in rule.reason(found[:2], "validation")


def test_a_metric_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(FedMoEError, match="'rouge' is none of the evaluations' score, loss"):
        EarlyStopping(metric="rouge").reason(lines(1, score=0.5), "validation")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_folder):
    """Five rounds, of which a rule that nothing satisfies leaves two; epochs and dropout too."""
    home = tmp_path_factory.mktemp("early")
    rows = [{"prompt": f"what is {n} plus 1", "response": f"{n + 1}"} for n in range(40)]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "early.yaml").write_text(
        f"""\
name: run
rounds: 5
model: {{path: {tiny_folder}}}
adapter: {{rank: 2, alpha: 4.0, dropout: 0.1}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
aggregation: {{name: fedavg}}
training: {{epochs: 0.4, batch_size: 4, probe_examples: 2}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
early_stopping: {{patience: 1, min_delta: 100}}
"""
    )
    return load_experiment(home / "early.yaml")


class Screen(Display):
    """Keeps notes, and interrupts the run after a round."""

    def __init__(self, until=99):
        self.until, self.notes = until, []

    def noted(self, notes):
        self.notes += [note for note in notes if note.startswith("stopped")]

    def finished(self, state):
        if state.round == self.until:
            raise KeyboardInterrupt


def run(experiment, folder, display, resume="auto"):
    simulation = replace(experiment.simulation, folder=str(folder))
    return session.run(replace(experiment, simulation=simulation), display, resume=resume)


@pytest.fixture(scope="module")
def stopped(experiment, tmp_path_factory):
    screen = Screen()
    return run(experiment, tmp_path_factory.mktemp("runs"), screen), screen


def test_the_reason_is_on_screen_in_the_ledger_the_summary_and_the_page(stopped):
    folder, screen = stopped
    (note,) = screen.notes
    assert note.startswith("stopped early after round 2: validation loss has not improved by more")
    found = read_run(folder)
    assert status(found) == note
    assert dict(facts(found))["Rounds"] == "2 of 5"
    assert found.complete
    assert found.header["name"] == "run"
    for name in ("summary.md", "report.html"):
        assert "topped early after round 2" in (folder / name).read_text()
    rounds = {(s["split"], s["round"]) for s in json.loads((folder / "scores.json").read_text())}
    assert rounds == {("test", 0), ("validation", 1), ("validation", 2), ("test", 2)}


def test_a_comparison_keeps_its_scores(stopped):
    folder, _ = stopped
    found = read_result("early", 0, folder)
    assert {tier.name for tier in read_run(folder).tiers} < {*found.scores}
    assert found.counts is not None
    assert len(found.counts) == 2


def test_an_interrupted_run_stops_at_the_same_round_with_the_same_bits(
    stopped, experiment, tmp_path
):
    """Its epochs and its dropout go on where they were."""
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path, Screen(until=2))
    folder = run(experiment, tmp_path, screen := Screen())
    assert screen.notes == stopped[1].notes
    ends = [
        [r for r in read_ledger(of / "ledger.jsonl") if r["kind"] in ("stopped", "end")]
        for of in (folder, stopped[0])
    ]
    assert ends[0][0] == ends[1][0]
    assert ends[0][1]["adapter_sha256"] == ends[1][1]["adapter_sha256"]


def test_a_run_killed_after_its_last_round_stops_at_once(
    stopped, experiment, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Recorder, "stopped", killed)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path, Screen())
    folder = run(experiment, tmp_path, screen := Screen(until=2))  # no further round
    assert screen.notes == stopped[1].notes
    assert len([r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] == "round"]) == 2


def test_without_validation_there_is_nothing_to_stop_by(experiment):
    evaluation = replace(experiment.evaluation, every=0)
    with pytest.raises((ConfigError, ValueError), match=r"evaluation\.every is 0"):
        replace(experiment, evaluation=evaluation)

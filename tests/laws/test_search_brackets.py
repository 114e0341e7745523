"""A search brackets its best values, or its grid grows, or the report says so."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from fedmoe.comparison.bracket import Bracket, brackets, unbracketed
from fedmoe.comparison.config import Comparison, Search
from fedmoe.comparison.plan import grid, search_of
from fedmoe.comparison.search import describe, widened
from fedmoe.comparison.study import Trial
from fedmoe.errors import FedMoEError

whole = import_module("fedmoe.comparison.compare")  # the package's function has its name
RATE, MU = "training.learning_rate", "aggregation.mu"
CONFIG = Path(__file__).parents[2] / "configs/any.yaml"


def comparison(**search):
    fields = {"grid": {RATE: (0.005, 0.01)}, "seed": 9, "overrides": ("evaluation.every=1",)}
    return Comparison(
        experiment="quickstart.yaml",
        variants={"plain": ("aggregation.name=fedavg",), "prox": ("aggregation.name=fedprox",)},
        reference="plain",
        search=Search(**(fields | search)),
    )


@pytest.mark.parametrize(
    ("tried", "best", "inside", "lacks"),
    [
        ((0.005, 0.01, 0.02), 0.01, True, []),
        ((0.005, 0.01), 0.01, False, [0.02]),
        ((0.005, 0.01), 0.005, False, [0.0025]),
        ((0, 1, 2), 2, False, [3]),
        ((0, 1, 2), 0, True, []),
        ((0.0, 0.5), 0.5, False, [1.0]),
        ((1, 2), 2, False, [4]),
        ((0.1,), 0.1, False, [0.2, 0.05]),
        ((1e-9, 0.01), 0.01, False, [0.1]),
        ((False, True), True, None, []),
        (("a", "b"), "b", None, []),
        ((-1, 0, 1), -1, False, [-2]),
    ],
)
def test_a_best_value_at_an_edge_lacks_the_next_one(tried, best, inside, lacks):
    found = Bracket("v", "a.b", tried, best, len(tried))
    assert found.inside is inside
    assert found.lacks == lacks


def test_brackets_are_those_of_each_variants_chosen_trial():
    trials = [
        Trial(v, (f"{RATE}={rate}", f"{MU}={mu}"), 0.5, 1.0, (v, rate, mu) in CHOSEN)
        for v in ("a", "b")
        for rate in (0.1, 0.01)
        for mu in (0.3, 0.1, 0.2)
    ]
    found = {(b.variant, b.setting): b for b in brackets(trials)}
    assert found["a", MU].tried == (0.1, 0.2, 0.3)
    assert [(b.best, b.inside, b.points) for b in found.values()] == [
        (0.01, False, 6),
        (0.2, True, 6),
        (0.1, False, 6),
        (0.3, False, 6),
    ]
    said = unbracketed(trials)
    assert f"a ({RATE}=0.01), b ({RATE}=0.1), b ({MU}=0.3)." in said
    assert unbracketed(trials[:0]) == ""


CHOSEN = {("a", 0.01, 0.2), ("b", 0.1, 0.3)}


def test_a_shared_grid_grows_for_all_and_an_own_one_for_its_variant():
    asked = comparison(variants={"prox": {MU: (0.1, 0.01)}})
    trials = [
        Trial("plain", (f"{RATE}=0.01",), 0, 1.0, chosen=True),
        Trial("plain", (f"{RATE}=0.005",), 0, 2.0),
        Trial("prox", (f"{RATE}=0.01", f"{MU}=0.01"), 0, 1.0, chosen=True),
        Trial("prox", (f"{RATE}=0.005", f"{MU}=0.1"), 0, 2.0),
    ]
    grown = widened(asked, trials)
    assert grown.search.grid == {RATE: (0.005, 0.01, 0.02)}
    assert grown.search.variants == {"prox": {MU: (0.1, 0.01, 0.001)}}
    assert (len(grid(grown, "plain")), len(grid(grown, "prox"))) == (3, 9)
    assert "Every variant had 3 to 9" in describe(grown)
    assert "Every variant had the same 2 points" in describe(comparison())
    names = {run.experiment.name for run in search_of(asked, CONFIG)}
    assert names < {run.experiment.name for run in search_of(grown, CONFIG)}, "runs are kept"


def search_by(monkeypatch, loss, **search):
    """Let runs of the search have a loss by their settings."""
    monkeypatch.setattr(whole, "_done", lambda run, board: (Path(), 1.0, False))

    def outcome(run, folder):
        return Trial(run.variant, run.settings, 0.0, loss(run.experiment))

    monkeypatch.setattr(whole, "read_trial", outcome)
    console = whole.Console(quiet=True)
    return whole._search(comparison(**search), CONFIG, True, console)


def _diverges(experiment):
    if experiment.training.learning_rate > 0.01:
        raise FedMoEError("all clients diverged")
    return -experiment.training.learning_rate


def test_a_grid_grows_until_the_best_is_inside_or_twice(monkeypatch):
    grown, trials = search_by(monkeypatch, lambda e: abs(e.training.learning_rate - 0.021))
    assert grown.search.grid[RATE] == (0.005, 0.01, 0.02, 0.04)
    assert len(trials) == 8, "all variants have all points"
    assert {t.settings for t in trials if t.chosen} == {(f"{RATE}=0.02",)}
    assert unbracketed(trials) == ""
    grown, trials = search_by(monkeypatch, lambda e: -e.training.learning_rate)
    assert grown.search.grid[RATE] == (0.005, 0.01, 0.02, 0.04)
    assert "at the edge of its grid for plain (training.learning_rate=0.04)" in unbracketed(trials)
    grown, trials = search_by(monkeypatch, _diverges)
    assert [t.loss for t in trials] == [-0.005, -0.01] * 2 + [math.inf] * 2
    assert unbracketed(trials) == "", "the value beyond cannot be trained with"
    grown, trials = search_by(monkeypatch, lambda e: -e.training.learning_rate, widened=0)
    assert grown.search.grid[RATE] == (0.005, 0.01)


def test_a_value_that_no_run_can_have_is_not_added(monkeypatch):
    grid = {"adapter.dropout": (0.45, 0.9)}
    grown, trials = search_by(monkeypatch, lambda e: -e.adapter.dropout, grid=grid)
    assert grown.search.grid["adapter.dropout"] == (0.45, 0.9)
    assert "adapter.dropout=0.9" in unbracketed(trials)


def test_a_grid_of_a_variant_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'flame' is not one of the variants"):
        comparison(variants={"flame": {"aggregation.temperature": (0, 1)}})


def test_comparisons_score_600_examples_unless_told_otherwise():
    made = comparison()
    assert {r.experiment.evaluation.test_examples for r in whole.first_plan(made, CONFIG)} == {600}
    few = replace(made, overrides=("evaluation.test_examples=80",))
    assert {r.experiment.evaluation.test_examples for r in whole.first_plan(few, CONFIG)} == {80}

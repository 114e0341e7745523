"""Metrics that a configuration names wrongly, twice, or without what they need: each is said."""

import pytest

from fedmoe.config import load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.errors import ConfigError
from fedmoe.evaluation import overlap

FAULTS = {
    "exact_macht": "evaluation.metric.name: 'exact_macht' is not one of 'loss', 'likelihood'",
    "[token_f1, {name: choice, normalise: words}]": (
        "evaluation.metric.1.normalise: 'words' is not one of 'none', 'tokens', 'characters'"
    ),
    "[{name: tool_calls, ordr: same}]": (
        "evaluation.metric.0.ordr: unknown key; did you mean evaluation.metric.0.order?"
    ),
    "[]": "or a mapping with a name or a list of them",
    "3": "evaluation.metric: found 3, expected one of 'loss'",
    "[token_f1, token_f1]": "evaluation.metric: 'token_f1' is there 2 times",
    "verifier": "evaluation.metric: data.name 'files' has no verifier of its own",
    "choice": "'choice' needs options; set data.options to the column that holds them",
}


def load(tmp_path, metric):
    path = tmp_path / "any.yaml"
    text = "data: {name: files, path: rows.jsonl}\nevaluation: {metric: %s}\n"
    path.write_text(text % metric)
    return load_experiment(path)


@pytest.mark.parametrize("metric", FAULTS)
def test_a_wrong_metric_is_said_with_its_place(tmp_path, metric):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, metric)
    (fault,) = caught.value.faults
    assert FAULTS[metric] in str(fault)


def test_a_list_of_metrics_comes_back_from_yaml(tmp_path):
    asked = load(tmp_path, "[token_f1, {name: tool_calls, order: same}, loss]")
    assert [metric.name for metric in asked.evaluation.metric] == ["token_f1", "tool_calls", "loss"]
    (tmp_path / "again.yaml").write_text(to_yaml(asked))
    assert load_experiment(tmp_path / "again.yaml") == asked


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "missing", lambda *packages: [*packages])
    with pytest.raises(ConfigError, match=r"run: pip install 'fedmoe\[rouge\]'"):
        load(tmp_path, "rouge_l")

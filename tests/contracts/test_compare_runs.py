"""Finished runs are compared as they are: in pairs where they share their test examples."""

import json

import pytest
from test_comparison_page import write_run

from fedmoe.cli.main import main
from fedmoe.comparison import compare_runs
from fedmoe.comparison.paired import difference, unpaired
from fedmoe.comparison.result import MEAN
from fedmoe.errors import FedMoEError, FedMoEWarning
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.report.example_scores import FILE, read_example_scores, write_example_scores

pytestmark = pytest.mark.usefixtures("uncharted")

A = {"low": [1, 0, 0, 1], "high": [1, 1, 0, 1]}
B = {"low": [1, 1, 0, 1], "high": [1, 1, 1, 1]}


def evaluated(folder, scores, sha256="s"):
    found = [
        Evaluation(2, "test", tier, 1, 0.5, sum(each) / 4, 0.0, 4, 1.0, {}, each=tuple(each))
        for tier, each in scores.items()
    ]
    for e in found:
        object.__setattr__(e, "examples_sha256", sha256)
    write_example_scores(folder, found)


def two(tmp_path, **changes):
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder, gain in zip(folders, (0.0, 0.05), strict=True):
        write_run(folder, gain)
        name = folder.name
        (folder / "config.yaml").write_text(
            f"seed: {ord(name)}\ntraining: {{steps: {changes.get(name, 5)}}}\n"
        )
    return folders


def by_loss(folder):
    """Turn a run into one that was scored by its loss alone."""
    ledger = folder / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines = [x | {"score": None, "metric": "loss"} if "score" in x else x for x in lines]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))


def differences_of(folder):
    (case,) = json.loads((folder / "comparison.json").read_text())["cases"]
    return {tier: tuple(d.values()) for tier, d in case["differences"]["b"]["by_tier"].items()}


def test_shared_examples_make_pairs(tmp_path):
    folders = two(tmp_path, b=9)
    evaluated(folders[0], A)
    evaluated(folders[1], B)
    out = compare_runs(folders)
    expected = {
        "low": difference(B["low"], A["low"], 3),
        "high": difference(B["high"], A["high"], 3),
        MEAN: difference([1, 1, 0.5, 1], [1, 0.5, 0, 1], 3),
    }
    found = differences_of(out)
    for tier, d in expected.items():
        assert found[tier] == pytest.approx((d.mean, d.low, d.high, d.least))
    page = (out / "comparison.html").read_text()
    assert "paired by test example" in page
    assert "the same, by hash" in page
    assert "Highest mean of tiers: b, 65.0 %; +25.0 [" in page
    assert "on the same test examples; another seed may differ by more. With 4 test" in page
    text = (out / "comparison.md").read_text()
    assert "| training.steps | 5 | 9 |" in text


@pytest.mark.parametrize("other", ["t", None])
def test_other_examples_make_none_and_that_is_said(tmp_path, other):
    folders = two(tmp_path)
    evaluated(folders[0], A)
    if other:
        evaluated(folders[1], B, other)
    out = compare_runs(folders)
    d = unpaired((0.65, 4), (0.6, 4), 3)  # the means of the tiers, each of four examples
    assert differences_of(out)[MEAN] == pytest.approx((d.mean, d.low, d.high, d.least))
    page = (out / "comparison.html").read_text()
    assert "unpaired examples" in page
    assert ("different ones" if other else "not known to be the same") in page


def test_scores_of_another_kind_are_refused(tmp_path, capsys):
    a, b = two(tmp_path)
    assert main(["compare", str(a)]) == 2
    assert "name another to compare it with" in capsys.readouterr().err
    (b / "config.yaml").write_text("evaluation: {metric: own:rouge}\n")
    with pytest.raises(FedMoEError, match="have different metrics"):
        compare_runs([a, b])
    lines = (b / "ledger.jsonl").read_text()
    by_loss(b)
    (b / "config.yaml").write_text("evaluation: {metric: {name: loss}}\n")
    with pytest.raises(FedMoEError, match=r"different metrics.*metric loss"):
        compare_runs([a, b])
    (b / "config.yaml").unlink()
    (b / "ledger.jsonl").write_text(lines.replace('"low"', '"tiny"'))
    with pytest.raises(FedMoEError, match=r"different tiers.*high, low and high, tiny"):
        compare_runs([a, b])
    (b / "ledger.jsonl").write_text(lines[: lines.index('{"kind": "end"')])
    with pytest.raises(FedMoEError, match="has not ended"):
        compare_runs([a, b])


def test_runs_of_different_models_are_compared_with_a_warning(tmp_path):
    folders = two(tmp_path)
    config = folders[1] / "config.yaml"
    config.write_text(config.read_text() + "model: {path: other}\n")
    with pytest.warns(FedMoEWarning, match="different models, mini, other: a difference is not"):
        compare_runs(folders)


def test_runs_by_their_loss_alone_show_no_scores(tmp_path):
    folders = two(tmp_path)
    for folder in folders:
        by_loss(folder)
    text = (compare_runs(folders) / "comparison.md").read_text()
    assert "score, %" not in text
    assert "very score is" not in text
    assert "ll scores are the same" not in text
    assert "| mean of tiers |" in text


def test_single_scores_stay_out_of_the_ledger_and_are_small(tmp_path):
    evaluated(tmp_path, {"low": [1.0, 0.0, 0.25, 1.0]})
    assert '"low": [1, 0, 0.25, 1]' in (tmp_path / FILE).read_text()
    assert read_example_scores(tmp_path).by_tier == {"low": [1, 0, 0.25, 1]}
    line = Evaluation(1, "test", "low", 1, 0.5, 1.0, 1.0, 1, 1.0, {}, each=(1.0,)).as_json()
    assert not {"each", "examples_sha256"} & {*line}

"""`fedmoe compare` where each client holds and scores its own rows, with its baselines."""

import json

import pytest

from fedmoe.cli.main import main

pytestmark = pytest.mark.usefixtures("uncharted")

EXPERIMENT = """\
name: owners
rounds: 1
model: {{path: {model}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: federated, path: {rows}}}
budget: {{default: low, tiers: {{high: {{top_k: 4, clients: [barn]}}, low: {{top_k: 1}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 4}}
"""
OWNERS = {"attic": 12, "barn": 15, "cellar": 9}


@pytest.fixture
def comparison(tmp_path, tiny_folder):
    """A function that writes a comparison of variants, and returns its file."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, number in OWNERS.items():
        found = [{"prompt": f"{name} asks {n}", "response": f"says {n}"} for n in range(number)]
        (rows / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    (tmp_path / "owners.yaml").write_text(EXPERIMENT.format(model=tiny_folder, rows=rows))

    def write(**variants):
        fields = {
            "experiment": "owners.yaml",
            "folder": str(tmp_path / "runs"),
            "seeds": [0],
            "reference": "flame",
            "variants": {"flame": [], **variants},
        }
        path = tmp_path / "cmp.yaml"
        path.write_text(json.dumps(fields))
        return str(path)

    return write


def test_strategies_and_baselines_are_compared_by_client(comparison, tmp_path, capsys):
    baselines = {name: {"baseline": name} for name in ("alone", "full_budget", "zero_rounds")}
    path = comparison(fedavg=["aggregation.name=fedavg"], **baselines)
    assert main(["compare", path, "--quiet"]) == 0
    folder = tmp_path / "runs/comparison"
    (case,) = json.loads((folder / "comparison.json").read_text())["cases"]
    runs = case["runs"]
    found = {run["variant"]: run for run in runs}
    assert set(found) == {"flame", "fedavg", *baselines}
    for run in runs:
        assert set(run["clients"]) == {"0", "1", "2"}
        assert set(run["scores"]) == {"high", "low", "mean of tiers"}
        # barn alone is in `high`, also where it trained in the tier of full budget.
        assert run["scores"]["high"] == pytest.approx(run["clients"]["1"])
    page = (folder / "comparison.html").read_text()
    assert "yes, by their counts of rows" in page
    assert "that on its own test rows" in page


def test_all_data_is_refused_with_the_reason(comparison, capsys):
    assert main(["compare", comparison(pooled={"baseline": "all_data"}), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "variants.pooled: data.name: 'federated' has no pooled form" in said

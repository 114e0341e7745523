"""Whole runs of strategies that differ most from an average: report, export, generation."""

import pytest
from sums import DEVICE, write_sums

from fedmoe.cli.main import main
from fedmoe.report.ledger import read_ledger

ALONE = "fedmoe.comparison.baselines:LocalOnly"
UNUSUAL = (ALONE, "fedsa_lora", "fed_sb", "flora", "hetlora", "scaffold", "ub_smoe", "fedbuff")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, tiny_folder):
    """A function that runs a strategy on a tiny model and gives the folder."""
    home = tmp_path_factory.mktemp("strategies")
    write_sums(home, 9, 8, kinds=True)

    def play(kind):
        name = kind.rpartition(":")[2]
        devices = f"devices: {{high: {DEVICE}, low: {DEVICE}}}\n" if name == "fedbuff" else ""
        low = "top_k: 1, rank: 2" if name in ("flora", "hetlora") else "top_k: 1"
        (home / f"{name}.yaml").write_text(
            f"""\
name: {name}
rounds: 2
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}, label: kind}}
partition: {{name: dirichlet, num_clients: 4}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{{low}}}}}}}
training: {{steps: 2, batch_size: 4, probe_examples: 4}}
aggregation: {{name: "{kind}"}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 2}}
simulation: {{folder: {home / "runs"}}}
{devices}"""
        )
        assert main(["check", str(home / f"{name}.yaml")]) == 0
        assert main(["run", str(home / f"{name}.yaml"), "--quiet"]) == 0
        return home / "runs" / name

    return play


@pytest.mark.usefixtures("proved_here")
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_run_ends_with_a_report_and_exports_or_says_why_not(name, run_of, tmp_path, capsys):
    folder = run_of(name)
    lines = read_ledger(folder / "ledger.jsonl")
    assert lines[-1]["kind"] == "end"
    failed = [x for x in lines if x["kind"] == "client" and x["status"] != "ok"]
    assert not failed
    tests = [x for x in lines if x["kind"] == "evaluation" and x["split"] == "test"]
    assert {x["round"] for x in tests} == {0, 2}
    assert lines[0]["strategy"] in (folder / "report.html").read_text()
    refused = {
        ALONE: "no common model",
        "fedsa_lora": "no common model",
        "ub_smoe": "no form for modulated routers",
    }
    code = main(["export", str(folder), str(tmp_path / "adapter")])
    assert code == (2 if name in refused else 0)
    assert refused.get(name, "") in capsys.readouterr().err
    code = main(
        [
            "generate",
            "--run",
            str(folder),
            "--tier",
            "low",
            "--max-new-tokens",
            "2",
            "what is 1 plus 1",
        ]
    )
    assert code == (2 if name in (ALONE, "fedsa_lora") else 0)


def test_a_client_of_a_lower_rank_or_budget_pays_less(run_of):
    opening = read_ledger(run_of("flora") / "ledger.jsonl")[0]["tiers"]
    full, low = opening["high"], opening["low"]
    assert low["bytes_up"] < full["bytes_up"]
    assert low["parameters"] * 2 == full["parameters"]
    assert low["train_flops_per_token"] < full["train_flops_per_token"]

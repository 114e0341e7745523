"""The report's table of memory options, and the studies that compare runs: tables, curve, book."""

import json
from dataclasses import replace

import pytest
from report_folder import make_run
from shapes import FULL_TOP_K

from fedmoe.comparison.paired import difference
from fedmoe.report.run import read_run
from fedmoe.report.run_tables import memory_options as memory_options_table
from simulations import claim, memory_options, routers, study


def test_a_run_with_memory_options_shows_each_tiers_bytes_and_score(tmp_path):
    run = read_run(make_run(tmp_path))
    assert memory_options_table(run).rows == []
    tiers = [replace(tier, expert_bytes=1000, full_expert_bytes=1000) for tier in run.tiers]
    said = "int8, 4 kept, others merged into one"
    tiers[0] = replace(tiers[0], memory_options=said, expert_bytes=80)
    rows = memory_options_table(replace(run, tiers=tiers)).rows
    assert len(rows) == len(tiers)
    assert rows[0][1] == said
    assert rows[0][3:5] == ["80 B", "92.0%"]
    assert rows[1][4] == "0.0%"


def line(seed, score, size):
    scores = {"score": score, "whole_score": score, "loss": 1.0}
    return {"seed": seed, "bytes": size, "full_bytes": 100, **scores}


SPREAD = [{"seed": s, "score": s**2 / 9} for s in range(3)]


def test_a_memory_option_is_compared_with_full_seed_by_seed(tmp_path):
    known = {"full": [line(s, 0.5 + s / 10, 100) for s in range(3)]}
    known["int8"] = [line(s, 0.4 + s / 10, 25) for s in range(3)]
    assert study.against(known["int8"], known["full"]).startswith("-10.0 [-10.0")
    assert study.against(known["int8"], []) == "-"
    once, of_six = (study.gained(SPREAD, known["full"], tests) for tests in (1, 6))
    assert of_six.high > once.high
    text = memory_options.show(known, tmp_path)
    assert "| int8 | 3 | 0.00 | 75% | 0.500 ± 0.100 | -10.0" in text
    assert (tmp_path / "memory_options.png").read_bytes().startswith(b"\x89PNG")


def test_a_gating_is_compared_with_top_k_seed_by_seed(tmp_path):
    figures = dict.fromkeys(routers.COLUMNS, 0.5)
    scores, seconds = {"top_k": (0.5, 0.6), "top_1": (0.4, 0.5)}, {"top_k": 2.0, "top_1": 1.6}
    known = {
        name: [
            {
                "seed": s,
                **figures,
                "score": score,
                "seconds": {"1 0": seconds[name], f"2 {name}": 9},
            }
            for s, score in enumerate(scores[name])
        ]
        for name in scores
    }
    _, _, first, second = routers.show(known, tmp_path).splitlines()
    assert first.startswith("| top_k | 2 | 0.550 ± 0.071 |  | 0.500")
    assert second.startswith("| top_1 | 2 | 0.450 ± 0.071 | -10.0 [-10.0, -10.0] | 0.500")
    assert second.endswith("| 0.80x |")


def test_a_run_that_was_measured_is_not_run_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(study, "run", lambda experiment, **_: ran.append(experiment.seed))
    variants = [study.Variant("a"), study.Variant("b", ("rounds=3",))]
    made = study.Study("s", variants, lambda variant, folder: {"runs": len(ran)}, tmp_path)
    for variant in variants:
        for seed in study.SEEDS:
            folder = made.folder() / made.experiment(variant, seed).name
            folder.mkdir(parents=True)
    first, again = [*made.lines()], [*made.lines()]
    assert (
        first[-1]
        == again[-1]
        == {
            "a": [{"seed": s, "runs": s + 1} for s in range(3)],
            "b": [{"seed": s, "runs": s + 4} for s in range(3)],
        }
    )
    assert ran == [0, 1, 2] * 2
    other = made.experiment(study.Variant("a", ("rounds=4",)), 0)
    assert made.line(variants[0], other)["runs"] == 7


@pytest.mark.parametrize(
    "variant", memory_options.VARIANTS, ids=[v.name for v in memory_options.VARIANTS]
)
def test_every_memory_option_is_a_run_of_clients_alike(variant):
    experiment = memory_options.STUDY.experiment(variant, 1)
    tiers = experiment.budget.resolved(FULL_TOP_K)
    assert set(experiment.budget.assign(8, FULL_TOP_K, 1)) == {"all"}
    assert tiers["whole"].memory_options == ""
    assert (tiers["all"].memory_options == "") == (variant.name == "full")


@pytest.mark.parametrize("variant", routers.VARIANTS, ids=[v.name for v in routers.VARIANTS])
def test_every_gating_is_a_run_that_can_be(variant):
    routers.STUDY.experiment(variant, 1)


def test_the_claim_sets_in_bold_what_is_beyond_doubt():
    losses = {
        "FedAvg": {0: 0.5, 1: 0.6, 2: 0.7, 9: 0.0},
        "FLAME": {0: 0.3, 1: 0.9, 2: 0.6},
        "HetLoRA": {0: 0.4, 1: 0.5, 2: 0.61},
        "no training": {0: 0.0},
    }
    head, _, fedavg, flame = claim.directly(losses).splitlines()
    assert head == "|  | HetLoRA |"
    wanted = difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.61], tests=2)  # two cells
    assert fedavg == f"| FedAvg | **+0.097 [{wanted.low:+.3f}, {wanted.high:+.3f}]** |"
    assert flame.startswith("| FLAME | +0.097 [-0.8")


def test_the_claim_writes_a_page_of_a_comparison(tmp_path, monkeypatch, capsys):
    def compare(config, overrides, quiet, console):
        runs = [
            {"variant": name, "seed": seed, "losses": {"lowest": loss * (100 + seed) / 100}}
            for name, loss in (("FedAvg", 1.2), ("FLoRA", 0.2))
            for seed in range(2)
        ]
        cases = [{"name": name, "runs": runs} for name in ("alpha 0.1", "natural")]
        (tmp_path / "comparison.json").write_text(json.dumps({"cases": cases}))
        (tmp_path / "comparison.md").write_text("## Scores\n")
        return tmp_path

    monkeypatch.setattr(claim, "compare", compare)
    assert claim.main([]) == 0
    text = (tmp_path / "claim.md").read_text()
    assert text.startswith("# Fewer experts or a lower rank: `compare_claim.yaml`")
    assert text.count("| FedAvg | **+1.005 [+0.941, +1.069]** |") == 2
    assert text.index("alpha 0.1\n") < text.index("natural\n")
    assert "of all 1 cells of a table hold\ntogether with 95 %" in text
    assert text.endswith("## Scores\n")
    assert str(tmp_path / "claim.md") in capsys.readouterr().out

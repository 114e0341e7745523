"""The report's table of memory levers, and the benchmark's table and curve."""

import json
from dataclasses import replace

import pytest
from report_folder import make_run

from fedmoe.config import load_experiment
from fedmoe.report.run import read_run
from fedmoe.report.run_tables import memory_options
from simulations.benchmarks import book, routers
from simulations.benchmarks.levers import VARIANTS, asked, curve, kept, table


def test_a_run_with_levers_shows_each_tiers_bytes_and_score(tmp_path):
    run = read_run(make_run(tmp_path))
    assert memory_options(run).rows == []
    tiers = [replace(tier, expert_bytes=1000, full_expert_bytes=1000) for tier in run.tiers]
    said = "int8, 4 kept, others merged into one"
    tiers[0] = replace(tiers[0], memory_options=said, expert_bytes=80)
    rows = memory_options(replace(run, tiers=tiers)).rows
    assert len(rows) == len(tiers)
    assert rows[0][1] == said
    assert rows[0][3:5] == ["80 B", "92.0%"]
    assert rows[1][4] == "0.0%"


def a_line(variant, seed, score, size):
    return {
        "variant": variant,
        "seed": seed,
        "settings": "x",
        "score": score,
        "loss": 1.0,
        "whole_score": score,
        "whole_loss": 1.0,
        "bytes": size,
        "full_bytes": 100,
    }


def test_a_lever_is_held_against_full_seed_by_seed(tmp_path):
    path = tmp_path / "levers.jsonl"
    lines = [a_line("full", s, 0.5 + s / 10, 100) for s in range(3)]
    lines += [a_line("int8", s, 0.4 + s / 10, 25) for s in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"variant": "in')
    shown = book.by_variant(kept(path))
    against = book.gained(shown["int8"], shown["full"])
    assert book.points(against).startswith("-10.0 [-10.0")
    text = table(shown)
    assert "| int8 | 3 | 0.00 | 75% | 0.500 ± 0.100 | -10.0" in text
    assert curve(shown).startswith(b"\x89PNG")


def test_a_gating_is_held_against_top_k_seed_by_seed():
    figures = dict.fromkeys(routers.COLUMNS, 0.5)
    scores = {"top_k": (0.5, 0.6), "top_1": (0.4, 0.5)}
    lines = [
        {"variant": name, "seed": seed, **figures, "score": score}
        for name in ("top_1", "top_k")
        for seed, score in enumerate(scores[name])
    ]
    _, _, first, second = routers.table(lines, {"top_1": 0.8, "top_k": 1.0}).splitlines()
    assert first.startswith("| top_k | 2 | 0.550 ± 0.071 |  | 0.500")
    assert second.startswith("| top_1 | 2 | 0.450 ± 0.071 | -10.0 [-10.0, -10.0] | 0.500")
    assert second.endswith("| 0.80x |")


def test_a_line_in_the_book_is_not_measured_again(tmp_path):
    path, times = tmp_path / "runs" / "b.jsonl", []
    experiments = [load_experiment(book.CONFIG, [f"seed={seed}"]) for seed in (0, 1)]
    for experiment in (experiments[0], experiments[0], experiments[1]):
        found = book.line_of(
            path, book.Variant("v"), experiment, lambda: times.append(1) or {"score": len(times)}
        )
        assert found["seed"] == experiment.seed
    assert [line["score"] for line in book.read(path)] == [1, 2]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_lever_is_a_run_of_clients_alike(variant):
    experiment = asked(variant, 1, quick=False)
    tiers = experiment.budget.resolved(4)
    assert set(experiment.budget.assign(8, 4, 1)) == {"all"}
    assert tiers["whole"].memory_options == ""
    assert (tiers["all"].memory_options == "") == (variant.name == "full")

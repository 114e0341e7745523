"""The comparison's folder is read back from runs, and its page keeps what all report pages keep."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fedmoe.comparison.files import render_page, write_numbers, write_pages
from fedmoe.comparison.headline import headline, headlines
from fedmoe.comparison.outcomes import results
from fedmoe.comparison.plots_curves import pareto
from fedmoe.comparison.plots_scores import paired_differences, tier_scores
from fedmoe.comparison.result import MEAN, last_validation, read_result
from fedmoe.comparison.study import Case, Study, Trial, VariantInfo
from fedmoe.comparison.tables import COSTS, clients
from fedmoe.errors import FedMoEError
from fedmoe.report import Ledger
from fedmoe.report.run import read_run

LABELS = [{"lights": 3, "timers": 1}, {"timers": 4}]


def evaluation(round, split, tier, score, factor=1.0):
    return {
        "kind": "evaluation",
        "round": round,
        "split": split,
        "tier": tier,
        "top_k": 1,
        "loss": 2 - score,
        "score": factor * score,
        "metric": "exact_match",
        "examples": 4,
        "seconds": 0.1,
        "by_label": {"lights": factor * score, "timers": factor * score / 2},
    }


def client(round, number, tier, status="ok"):
    return {
        "kind": "client",
        "round": round,
        "client": number,
        "tier": tier,
        "top_k": 1,
        "status": status,
        "examples": 4,
        "tokens": 10,
        "steps": 1,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "seconds": 2.0,
        "peak_bytes": 1,
        "bytes_up": 100,
        "bytes_down": 10,
        "flops": 1e6,
        "reason": "gone",
    }


def write_run(folder, gain=0.0, virtual=True, factor=1.0):
    """A run of two clients in two tiers and two rounds; in the second one client fails."""
    folder.mkdir(parents=True)
    tier = {
        "top_k": 1,
        "parameters": 1,
        "bytes_down": 10,
        "bytes_up": 100,
        "train_flops_per_token": 1.0,
        "memory_bytes": 1,
    }
    tiers = {"low": tier | {"clients": [0]}, "high": tier | {"top_k": 2, "clients": [1]}}
    head = {
        "kind": "run",
        "name": "x",
        "seed": 0,
        "num_rounds": 2,
        "num_clients": 2,
        "clients_per_round": 2,
        "model": "mini",
        "strategy": "flame",
        "rescaling": "none",
        "upload": "none",
        "full_top_k": 2,
        "tiers": tiers,
    }
    ended = {"seconds": 1.5} | ({"virtual_seconds": 30.0} if virtual else {})
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.append(head)
        for r in (1, 2):
            ledger.append(client(r, 0, "low"))
            ledger.append(client(r, 1, "high", "ok" if r == 1 else "failed"))
            counts = {"tokens": 10, "clients": 2, "failed": 0}
            ledger.append({"kind": "round", "round": r} | counts | ended)
            for number, name in enumerate(tiers):
                ledger.append(
                    evaluation(r, "validation", name, 0.1 * r + 0.2 * number + gain, factor)
                )
        for number, name in enumerate(tiers):
            ledger.append(evaluation(2, "test", name, 0.4 + 0.4 * number + gain, factor))
        ledger.append({"kind": "end", "seconds": 9.0, "phases": {}, "adapter_sha256": "ab"})
    clients = [
        {"client": c, "num_examples": 4, "labels": labels, "sha256": "s"}
        for c, labels in enumerate(LABELS)
    ]
    (folder / "manifest.json").write_text(json.dumps({"num_examples": 8, "clients": clients}))
    counts = np.ones((2, 3, 4), dtype=np.int64)
    np.savez(folder / "activations.npz", by_round=counts, by_client=counts)
    (folder / "config.yaml").write_text("seed: 0\nrounds: 2\n")


def test_a_result_is_what_the_runs_folder_says(tmp_path):
    write_run(tmp_path / "a")
    found = read_result("v", 5, tmp_path / "a", "case")
    assert (found.variant, found.seed, found.case) == ("v", 5, "case")
    assert found.scores == pytest.approx({"low": 0.4, "high": 0.8, MEAN: 0.6})
    # Client 0 is in tier low: 3/4 lights at 0.4 and 1/4 timers at 0.2; client 1: timers at 0.4.
    assert found.clients == pytest.approx({0: 0.35, 1: 0.4})
    spent = found.spent  # of the three updates that arrived
    assert (spent.bytes_up, spent.bytes, spent.flops) == (300, 330, 3e6)
    assert (spent.client_seconds, spent.wall_seconds, spent.virtual_seconds) == (6.0, 3.0, 60.0)
    assert (found.bytes_up, found.client_seconds, found.seconds) == (100, 2.0, 9.0)
    assert [(p.round, p.spent.bytes_up) for p in found.points] == [(1, 200), (2, 300)]
    assert [p.score for p in found.points] == pytest.approx([0.2, 0.3])
    assert found.counts.shape == (2, 3, 4)
    assert last_validation(read_run(tmp_path / "a")) == pytest.approx((0.3, 1.7))


def test_an_older_runs_folder_is_read_as_far_as_it_goes(tmp_path):
    write_run(tmp_path / "a", virtual=False)
    for name in ("activations.npz", "manifest.json", "config.yaml"):
        (tmp_path / "a" / name).unlink()
    found = read_result("v", 0, tmp_path / "a")
    assert found.spent.virtual_seconds is None
    assert (found.counts, found.clients, found.data_sha256) == (None, {}, "")


def test_a_run_without_its_end_has_no_result(tmp_path):
    write_run(tmp_path / "a")
    ledger = tmp_path / "a/ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    assert read_result("v", 0, tmp_path / "a") is None
    ledger.unlink()
    with pytest.raises(FedMoEError, match="cannot be read"):
        read_result("v", 0, tmp_path / "a")


def study(
    tmp_path,
    names=("base", "<b>ours</b>"),
    seeds=(0, 1),
    num_planned=None,
    spread=0.002,
    factor=1.0,
    step=0.01,
):
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    results = []
    for seed in seeds:
        for place, name in enumerate(names):
            folder = tmp_path / f"runs/{place}-{seed}"
            write_run(folder, step * place + spread * place * seed, factor=factor)
            results.append(read_result(name, seed, folder))
    case = Case("", names[0], tuple(results))
    variants = {name: VariantInfo(("a=1",), "A mean.") for name in names}
    return Study("demo", names[0], (case,), variants, num_planned or len(results))


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path):
    made = study(tmp_path)
    write_numbers(made, tmp_path)
    write_pages(made, tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|https?://", page)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<b>" not in page
    assert "&lt;b&gt;ours" in page
    for title in (
        "Test loss per token",
        "Differences to base: loss",
        "Test score in percent",
        "Differences to base: score",
        "Clients",
        "Costs",
        "No target is set",
        "Starved and captured experts",
        "What is compared",
        "Settings of all runs",
    ):
        assert title in page, title
    assert page.count("<svg") == len([*(tmp_path / "plots").glob("*.svg")]) == 7
    assert "Finished" in page
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert re.search(r'name="viewport"', page)
    assert "@media print" in page


def test_a_comparison_that_is_not_done_says_so(tmp_path):
    page = render_page(study(tmp_path, num_planned=9), {"": []})
    assert "4 of 9 runs are finished" in page


def test_every_case_has_a_section_and_the_search_a_table(tmp_path):
    first = study(tmp_path).cases[0]
    cases = tuple(
        replace(first, name=name, overrides=(f"partition.alpha={name}",)) for name in ("0.1", "10")
    )
    trials = [
        Trial("base", (f"training.steps={n}",), score, 1.0, chosen=n == 2)
        for n, score in ((1, 0.25), (2, 0.75))
    ] + [Trial("ours", (f"a.b={n}",), 0.5, 1.0, chosen=n == 2) for n in (1, 2, 3)]
    made = replace(study(tmp_path), cases=cases, trials=tuple(trials), search="The same points.")
    page = render_page(made, {"0.1": [], "10": []})
    assert page.count('<h2 class="case">') == page.count("<h2>Test loss per token</h2>") == 2
    assert page.index("partition.alpha=0.1") < page.index("partition.alpha=10")
    assert "75.0%</td><td>1.000</td><td>chosen" in page
    assert "25.0%</td><td>1.000</td><td></td>" in page
    assert "The same points." in page
    assert re.search(r">1, 2</td><td.*>2</td><td.*>no: at the edge</td><td>2</td>", page)
    assert re.search(r">1, 2, 3</td><td.*>2</td><td.*>yes</td><td>3</td>", page)
    said = headlines(made)
    assert len(said) == 3
    assert said[2].endswith("at the edge of its grid for base (training.steps=2).")


def test_baselines_do_not_compete_in_the_headline(tmp_path):
    case = study(tmp_path, names=("base", "ideal")).cases[0]
    assert "ideal" in headline(case)
    said = headline(replace(case, baselines=("ideal",)))
    assert "base" in said
    assert "ideal" not in said
    said = headline(replace(case, baselines=("base", "ideal")))
    assert said.startswith("There are only baselines")


def test_the_first_sentence_says_what_can_and_cannot_be_concluded(tmp_path):
    made = study(tmp_path).cases[0]
    assert headline(made).startswith(
        "It cannot be concluded that <b>ours</b> differs from base in test loss. "
        "With 2 seeds a difference under "
    )
    made = study(tmp_path, ("base", "ours", "third"), spread=0.00001).cases[0]
    said = headline(made)
    assert said.startswith(
        "It can be concluded that test loss is lower than base's with ours (mean of tiers, low, "
        "high) and third (mean of tiers, low, high). With 2 seeds"
    )
    assert "Lowest mean of tiers: third, 1.380; -0.020 [" in said
    unlike = replace(made.results[-1], losses=dict.fromkeys(made.results[-1].losses, 1.0))
    said = headline(replace(made, results=(*made.results[:-1], unlike)))
    assert (
        "ours (mean of tiers, low, high); it cannot be concluded that third differs. With 2" in said
    )


def test_one_seed_or_one_variant_concludes_nothing(tmp_path):
    made = study(tmp_path, seeds=(0,)).cases[0]
    assert headline(made).startswith(
        "Nothing can be concluded on differences: there is one seed, which shows no spread."
    )
    assert "nothing can be concluded on differences" in results(made).note
    assert "together" not in paired_differences(made).get_suptitle()
    alone = study(tmp_path, names=("base",)).cases[0]
    assert headline(alone).startswith("Nothing can be concluded: there is one variant.")
    assert headline(alone).endswith("base, 1.400, the reference itself.")
    assert paired_differences(alone) is None


def test_what_survives_the_correction_is_bold_on_the_page_and_in_markdown(tmp_path):
    made = study(tmp_path, spread=0.00001)
    write_numbers(made, tmp_path)
    assert re.search(
        r"\| \*\*-0\.010 \[-0\.0\d+, -0\.0\d+\]\*\* \|", (tmp_path / "comparison.md").read_text()
    )
    assert re.search(r"<td><b>-0\.010 \[", render_page(made, {"": []}))
    assert "<b>" not in render_page(study(tmp_path), {"": []})


def test_where_nobody_scores_losses_alone_are_shown(tmp_path):
    made = study(tmp_path, ("base", "ours"), factor=0.0)
    (case,) = made.cases
    assert case.measures == ["loss"]
    table = results(case)
    assert "Every score is 0.0 %, so losses alone are compared." in table.note
    assert table.rows[1][:3] == ["ours", "-0.011 [-0.049, +0.027]", "1.389 ± 0.001"]
    assert table.rows[1][table.columns.index("score, %")] == "0.0 ± 0.0"
    assert clients(case).rows == []
    titles = [figure.get_suptitle() for figure in (tier_scores(case), paired_differences(case))]
    assert all("loss" in title for title in titles)
    same = headline(study(tmp_path, ("base", "ours"), spread=0.0, factor=0.0, step=0.0).cases[0])
    assert same.startswith("No variant differs from base in test loss at all.")
    assert same.endswith("Lowest mean of tiers: 1.400, the same for all variants.")


def test_every_tier_has_a_panel_against_a_cost_and_the_best_at_that_cost(tmp_path):
    made = study(tmp_path, ("base", "ours")).cases[0]
    cost = next(c for c in COSTS if c[0] == "virtual time")
    panels = pareto(made, cost).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["low", "high"]
    front, base, ours = panels[0].lines
    # Rounds of 30 s; validation scores of 0.1 and 0.2, and losses of 2 less the score.
    assert [*base.get_xdata()] == [30.0, 60.0]
    assert [*base.get_ydata()] == pytest.approx([1.9, 1.8])
    assert [*front.get_ydata()] == pytest.approx([*ours.get_ydata(), ours.get_ydata()[-1]])


def test_outcomes_stand_beside_each_other_and_the_difference_comes_first(tmp_path):
    table = results(study(tmp_path).cases[0])
    assert table.columns[1] == "difference [95 %]"
    assert table.rows[0][table.columns.index("mean of tiers")] == "1.400 ± 0.000"
    assert table.rows[0][table.columns.index("score, %")] == "60.0 ± 0.0"

"""Paired differences against scipy's own test, and what the tables say."""

import csv
import json

import pytest
from scipy import stats

from fedmoe.report.comparison import MEAN, Result, difference, markdown, write_comparison

SCORES = {
    "base": [0.30, 0.50, 0.40],
    "better": [0.35, 0.56, 0.44],
    "noisy": [0.60, 0.10, 0.50],
}


def results():
    return [
        Result(name, seed, {"high": s, "low": s / 2, MEAN: 0.75 * s}, 1000.0, 2.0, "x")
        for seed in range(3)
        for name, s in ((n, scores[seed]) for n, scores in SCORES.items())
    ]


@pytest.mark.parametrize("name", ["better", "noisy"])
def test_the_interval_is_that_of_the_paired_t_test(name):
    found = difference(SCORES[name], SCORES["base"])
    test = stats.ttest_rel(SCORES[name], SCORES["base"]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert found.mean == pytest.approx((test.low + test.high) / 2)


def test_pairing_sees_what_spread_over_seeds_hides():
    better, noisy = (difference(SCORES[n], SCORES["base"]) for n in ("better", "noisy"))
    assert better.low is not None
    assert better.low > 0
    assert noisy.low is not None
    assert noisy.low < 0


def test_one_seed_has_a_difference_but_no_interval():
    found = difference([0.5], [0.25])
    assert (found.mean, found.low, found.high) == (0.25, None, None)


def test_the_table_has_a_row_a_variant_and_pairs_by_seed_not_by_order():
    rows = markdown(results()[::-1], "base").splitlines()
    assert len(rows) == 2 + 3
    by_name = {row.split("|")[1].strip(): row for row in rows[2:]}
    assert "| reference |" in by_name["base"]
    assert "| 40.0 ± 10.0 |" in by_name["base"]
    wanted = difference(*([0.75 * s for s in SCORES[n]] for n in ("better", "base")))
    assert f"{100 * wanted.mean:+.1f} [" in by_name["better"]
    assert "1.0 kB" in by_name["better"]


def test_a_variant_is_compared_on_the_seeds_that_both_have():
    early = [r for r in results() if not (r.variant == "base" and r.seed == 2)]
    row = next(r for r in markdown(early, "base").splitlines() if r.startswith("| better"))
    wanted = difference(
        [0.75 * s for s in SCORES["better"][:2]], [0.75 * s for s in SCORES["base"][:2]]
    )
    assert f"{100 * wanted.mean:+.1f} [" in row


def test_the_files_hold_every_run(tmp_path):
    write_comparison(results(), "base", tmp_path)
    assert len(json.loads((tmp_path / "comparison.json").read_text())) == 9
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [float(row["high"]) for row in rows if row["variant"] == "noisy"] == SCORES["noisy"]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "comparison.md").read_text() == markdown(results(), "base")

"""Statistics and fairness against slow formulas and scipy, and what the tables make of them."""

import csv
import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedmoe.comparison import outcomes
from fedmoe.comparison.fairness import fairness, jain_index, worst_tenth
from fedmoe.comparison.files import as_csv, as_json, render_markdown
from fedmoe.comparison.paired import difference, standard_errors, unpaired
from fedmoe.comparison.result import MEAN, Point, Result, Spent, mix_score
from fedmoe.comparison.study import Case, Study, Trial, VariantInfo
from fedmoe.comparison.tables import clients, costs
from fedmoe.comparison.targets import missing, reach
from fedmoe.comparison.verdicts import verdicts

SCORES = {"base": [0.30, 0.50, 0.40], "better": [0.35, 0.56, 0.44], "noisy": [0.60, 0.10, 0.50]}


def result(variant, seed, score, **changes):
    curve = tuple(
        Point(r, score * r / 4, 2 - score, Spent(100.0 * r, flops=1e9 * r), examples=100)
        for r in range(5)
    )
    fields = {
        "variant": variant,
        "seed": seed,
        "scores": {"high": score, "low": score / 2, MEAN: 0.75 * score},
        "losses": {"high": 2 - score, "low": 3 - score, MEAN: 2.5 - score},
        "spent": Spent(bytes_up=4000.0, client_seconds=8.0),
        "num_answers": 4,
        "clients": {0: score, 1: score / 2},
        "points": curve,
    }
    return Result(**(fields | changes))


def results():
    return [result(name, seed, SCORES[name][seed]) for seed in range(3) for name in SCORES]


def case(made=None, **changes):
    made = results() if made is None else made
    return Case(**({"name": "", "reference": "base", "results": tuple(made)} | changes))


def study(*cases, **changes):
    fields = {"name": "x", "reference": "base", "variants": {n: VariantInfo() for n in SCORES}}
    return Study(**(fields | {"cases": cases or (case(),), "num_planned": 9} | changes))


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


def test_the_bases_loss_at_every_k_stands_below_the_scores():
    """The reference tells it; another variant only where the reference has no such k."""
    scaled = {8: 3.5, 1: 9.0}
    runs = [
        result("scaled", 0, 0.2, base_losses=scaled),
        result("base", 0, 0.3, base_losses={4: 3.0, 1: 3.25}),
        result("base", 1, 0.5, base_losses={4: 3.5, 1: 4.25}),
    ]
    made = case(runs)
    assert list(made.base_losses.items()) == [(8, 3.5), (4, 3.25), (1, 3.75)]
    for table in (outcomes.results(made), outcomes.differences(made)):
        assert "3.500 at k = 8, 3.250 at k = 4, 3.750 at k = 1." in table.note
    assert "3.250 at k = 4" in render_markdown(study(made), short=True)
    assert "before training" not in outcomes.results(case()).note  # no run has told it


def test_one_seed_has_a_difference_but_no_interval():
    found = difference([0.5], [0.25])
    assert (found.mean, found.low, found.high) == (0.25, None, None)


def test_several_intervals_are_as_wide_as_bonferronis():
    """Each is the interval of a t-test at 5 % over their number."""
    found = difference(SCORES["noisy"], SCORES["base"], tests=8)
    test = stats.ttest_rel(SCORES["noisy"], SCORES["base"]).confidence_interval(1 - 0.05 / 8)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))


def test_a_run_that_diverged_has_no_interval_and_no_spread():
    lost = [
        result(
            n,
            s,
            0.4,
            losses=dict.fromkeys(("high", "low", MEAN), math.inf if n == "noisy" else 1.0),
        )
        for n in SCORES
        for s in range(2)
    ]
    rows = {row[0]: row for row in outcomes.results(case(lost)).rows}
    assert rows["noisy"][1:3] == ["+inf", "inf"]
    assert "No variant" not in render_markdown(study(case(lost)))


def test_pairs_without_a_spread_or_a_number_conclude_nothing():
    same = difference([0.25, 0.5, 0.75], [0.0, 0.25, 0.5], tests=2)
    assert (same.low, same.high, same.sure) == (0.25, 0.25, False)
    lost = difference([1.0, math.inf], [1.0, 1.0])
    assert (lost.mean, lost.low, lost.sure) == (math.inf, None, False)
    assert difference([1.0, 1.1, 0.9], [0.1, 0.1, 0.1]).sure


@pytest.mark.parametrize(("number", "tests"), [(3, 1), (5, 20), (12, 9)])
def test_the_least_difference_is_that_of_the_noncentral_t(number, tests):
    """It passes the corrected test in four of five tries."""
    shift = standard_errors(number, tests)
    critical = stats.t.ppf(1 - 0.05 / (2 * tests), number - 1)
    assert stats.nct.sf(critical, number - 1, shift) == pytest.approx(0.8, abs=1e-4)
    pairs = np.arange(number, dtype=float)
    found = difference(pairs, np.zeros(number), tests)
    assert found.least == pytest.approx(shift * stats.sem(pairs))


def test_of_two_runs_the_interval_of_several_tests_is_wider():
    once, of_nine = (unpaired((0.5, 100), (0.4, 100), tests) for tests in (1, 9))
    ratio = (of_nine.high - of_nine.mean) / (once.high - once.mean)
    assert ratio == pytest.approx(stats.norm.ppf(1 - 0.05 / 18) / stats.norm.ppf(0.975))


def simulated(rng, tiers=4, seeds=5, variants=4, alike=0.8):
    """A case in which no variant differs: the tiers of a run correlate."""
    names = [f"tier {i}" for i in range(tiers)]
    made = []
    for seed in range(seeds):
        data = rng.normal()  # the seed's own, which pairs cancel
        for variant in ("base", *(f"v{i}" for i in range(variants))):
            own = math.sqrt(alike) * rng.normal() + math.sqrt(1 - alike) * rng.normal(size=tiers)
            losses = dict(zip(names, (2 + 0.1 * (data + own)).tolist(), strict=True))
            losses |= {MEAN: sum(losses.values()) / tiers}
            made.append(Result(variant, seed, dict.fromkeys(losses, 0.0), losses, Spent(), 1))
    return case(made)


def test_a_null_of_correlated_tiers_alarms_in_one_table_of_twenty_at_most():
    """The report's own verdicts, where nothing differs: a false alarm anywhere in the table."""
    rng = np.random.default_rng(7)
    cases = [simulated(rng) for _ in range(300)]
    alarms = [any(v.sure for v in verdicts(made).values()) for made in cases]
    assert np.mean(alarms) <= 0.06
    alone = [
        any(_uncorrected(made, name, tier) for name in ("v0", "v1", "v2", "v3") for tier in TIERS)
        for made in cases[:60]
    ]
    assert np.mean(alone) > 0.15, "without the correction there are many"


TIERS = [f"tier {i}" for i in range(4)]


def _uncorrected(made, variant, tier):
    values = [(a.losses[tier], b.losses[tier]) for a, b in made.paired(variant)]
    return difference(*zip(*values, strict=True)).sure


def test_a_clients_score_is_that_of_its_own_mix():
    by_label = {"lights": 0.8, "timers": 0.2}
    assert mix_score({"lights": 3, "timers": 1}, by_label) == pytest.approx(0.65)
    assert mix_score({"lights": 3, "never tested": 7}, by_label) == pytest.approx(0.8)
    assert mix_score({"never tested": 7}, by_label) is None


@given(st.lists(st.floats(0, 1).map(lambda x: round(x, 6)), min_size=1, max_size=30))
def test_jains_index_is_between_one_of_all_and_all_alike(scores):
    found = jain_index(scores)
    assert 1 / len(scores) - 1e-9 <= found <= 1 + 1e-9
    if sum(scores):
        mean, spread = np.mean(scores), np.std(scores)
        assert found == pytest.approx(1 / (1 + (spread / mean) ** 2))


def test_fairness_by_hand():
    assert jain_index([1, 0, 0, 0]) == 0.25
    assert jain_index([0, 0]) == 1.0
    assert worst_tenth([0.5, 0.1, 0.9]) == 0.1
    assert worst_tenth([*[0.9] * 18, 0.1, 0.3]) == pytest.approx(0.2)
    assert worst_tenth([*[0.9] * 9, 0.1, 0.3]) == pytest.approx(0.2)
    assert worst_tenth([*[0.9] * 27, 0.1, 0.2, 0.3]) == pytest.approx(0.2)
    found = fairness(result("base", 0, 0.4))
    assert (found.mean, found.worst) == pytest.approx((0.3, 0.2))
    assert fairness(result("base", 0, 0.4, clients={})) is None


def test_a_variant_is_judged_seed_by_seed_as_one_of_all_cells():
    found = verdicts(case(results()[::-1]))  # paired by seed, not by order
    assert set(found) == {"better", "noisy"}
    wanted = difference(*([2.5 - s for s in SCORES[n]] for n in ("better", "base")), tests=6)
    better = found["better"]
    assert better.by_tier[MEAN].mean == pytest.approx(wanted.mean)
    assert better.by_tier[MEAN].low == pytest.approx(wanted.low)
    # Three seeds; two variants by two tiers and their mean.
    assert (better.num_pairs, better.tests) == (3, 6)
    by_score = verdicts(case(), "score")["better"].by_tier["low"]
    assert by_score.mean == pytest.approx(0.025)


def test_one_tier_is_one_column():
    made = [
        result(n, s, 0, scores={"all": x, MEAN: x}, losses={"all": 1 - x, MEAN: 1 - x})
        for n, scores in SCORES.items()
        for s, x in enumerate(scores)
    ]
    assert verdicts(case(made))["noisy"].tests == 2
    assert outcomes.differences(case(made)).columns == ["", "all"]
    assert outcomes.results(case(made)).columns[:4] == ["", "difference [95 %]", "all", "score, %"]


def test_a_table_says_what_it_cannot_show():
    said = outcomes.power(case())
    least = [d.least for v in verdicts(case()).values() for d in v.by_tier.values()]
    assert f"With 3 seeds a difference under {statistics.median(least):.3f} per token" in said
    assert f"{max(least):.3f} in the noisiest" in said
    one = case([r for r in results() if r.seed == 0])
    assert outcomes.power(one).startswith("With one seed nothing can be concluded")
    assert "cannot be seen" in outcomes.differences(case(), "score").note
    unscored = case([result(name, 0, 0.4, metric="loss") for name in SCORES])
    assert "Nothing but the loss was measured" in outcomes.results(unscored).note
    assert "Nothing but the loss" not in outcomes.results(case()).note


def test_few_test_examples_are_told_with_their_error():
    few, enough = ([result(n, 0, 0.4, num_examples={"low": m}) for n in SCORES] for m in (100, 600))
    assert (
        "over 100 test examples: its binomial error is up to 4.9 points"
        in outcomes.results(case(few)).note
    )
    assert "binomial" not in outcomes.results(case(enough)).note


def test_a_variant_is_compared_on_the_seeds_that_both_have():
    early = [r for r in results() if not (r.variant == "base" and r.seed == 2)]
    wanted = difference(*([2.5 - s for s in SCORES[n][:2]] for n in ("better", "base")))
    assert verdicts(case(early))["better"].by_tier[MEAN].mean == pytest.approx(wanted.mean)
    alone = [r for r in results() if r.variant != "base"]
    assert verdicts(case(alone)) == {}
    assert outcomes.results(case(alone)).rows[0][1] == "–"


def test_the_scores_have_a_row_a_variant():
    table = outcomes.results(case(results()[::-1]), "score")
    by_name = {row[0]: row for row in table.rows}
    assert list(by_name) == ["noisy", "better", "base"]
    assert by_name["base"][1:] == ["reference", "30.0 ± 7.5", "40.0 ± 10.0", "20.0 ± 5.0"]
    assert by_name["better"][1].startswith("+3.8 [")
    first = outcomes.results(case())
    assert first.columns[-3:] == ["score, %", "up per client-round", "s per client-round"]
    assert first.rows[0][2:] == [
        "2.100 ± 0.100",
        "1.600 ± 0.100",
        "2.600 ± 0.100",
        "30.0 ± 7.5",
        "1.0 kB",
        "2.0",
    ]
    assert [row[0] for row in outcomes.differences(case()).rows] == ["better", "noisy"]


LUCKY = result("base", 0, 0.4)


def test_the_cost_of_a_target_is_that_of_two_checks_in_succession():
    # base: 0.3, 0.5 and 0.4, of which a quarter more after each of rounds 0 to 4.
    rows = {row[0]: row for row in reach(case(target=0.22)).rows}
    assert rows["base"][1:3] == ["3 of 3", f"{(300 + 200 + 300) / 3:.0f} B"]
    assert rows["noisy"][1:3] == ["2 of 3", "–"]
    assert reach(case(target=0.26)).rows[0][1] == "2 of 3", "its last check alone reaches it"
    up_and_down = [replace(p, score=s) for p, s in zip(LUCKY.points, (0, 1, 0, 1, 1), strict=True)]
    lucky = reach(case([replace(LUCKY, points=tuple(up_and_down))], target=0.5))
    assert lucky.rows[0][1:3] == ["1 of 1", "300 B"]
    by_loss = reach(case(target_loss=1.66))
    assert {row[0]: row[1] for row in by_loss.rows}["base"] == "2 of 3"
    assert "a validation loss of 1.660" in by_loss.note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "No target is set"),
        ({"target": 0.04}, "of 100 validation examples that is under 5 right answers"),
        ({"target": 0.9}, "no variant reaches it on all seeds"),
    ],
)
def test_a_target_that_means_nothing_is_left_out_and_that_is_said(changes, said):
    made = case(**changes)
    assert reach(made).rows == []
    assert said in missing(made)
    assert said in render_markdown(study(made))


def test_columns_that_nobody_measured_are_left_out():
    assert "virtual time" not in costs(case()).columns
    timed = [result("base", 0, 0.4, spent=Spent(virtual_seconds=90.0))]
    table = costs(case(timed))
    assert table.rows[0][table.columns.index("virtual time")] == "1 min 30 s"
    assert clients(case([result("base", 0, 0.4, clients={})])).rows == []


def test_the_files_hold_every_run_and_every_case():
    other = case([result(n, 0, 0.2, case="b") for n in SCORES], name="b", overrides=("rounds=1",))
    made = study(case([result(n, 0, 0.4, case="a") for n in SCORES], name="a"), other)
    rows = list(csv.DictReader(as_csv(made).splitlines()))
    assert [(r["case"], r["variant"], float(r["high"])) for r in rows[2:4]] == [
        ("a", "noisy", 0.4),
        ("b", "base", 0.2),
    ]
    assert [float(rows[0][name]) for name in ("loss, high", "loss")] == [1.6, 2.1]
    assert float(rows[0]["jain_index"]) == pytest.approx(0.9)
    tree = json.loads(json.dumps(as_json(made)))
    assert [(c["name"], len(c["runs"])) for c in tree["cases"]] == [("a", 3), ("b", 3)]
    assert set(tree["cases"][0]["differences"]) == {"better", "noisy"}
    text = render_markdown(made)
    assert text.index("# a") < text.index("# b")
    assert text.count("## Test loss per token") == 2
    assert text.startswith("a: No variant differs from base in test loss at all.")
    trials = (Trial("base", ("training.learning_rate=0.1",), 0.3, 1.0, chosen=True),)
    assert as_json(study(trials=trials))["search"]["trials"][0]["chosen"] is True

"""Statistics and fairness against slow formulas and scipy, and what the tables make of them."""

import csv
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedmoe.comparison import tables
from fedmoe.comparison.fairness import fairness, jain_index, worst_tenth
from fedmoe.comparison.files import as_csv, as_json, render_markdown
from fedmoe.comparison.paired import difference, holm, wilcoxon
from fedmoe.comparison.result import MEAN, Point, Result, Spent, mean_load, mix_score
from fedmoe.comparison.study import Case, Study, Trial, VariantInfo, spent_to_reach, verdicts
from fedmoe.comparison.tables import clients, costs, differences, reach, scores
from fedmoe.report.expert_load import relative_shares

SCORES = {"base": [0.30, 0.50, 0.40], "better": [0.35, 0.56, 0.44], "noisy": [0.60, 0.10, 0.50]}


def result(variant, seed, score, **changes):
    curve = tuple(
        Point(r, score * r / 4, 2 - score, Spent(bytes_up=100.0 * r, flops=1e9 * r))
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
    assert "3.500 at k = 8, 3.250 at k = 4, 3.750 at k = 1." in tables.scores(made).note
    assert "before training" not in tables.scores(case()).note  # no run has told it


def test_one_seed_has_a_difference_but_no_interval():
    found = difference([0.5], [0.25])
    assert (found.mean, found.low, found.high) == (0.25, None, None)


def slow_wilcoxon(pairs):
    """Every way to sign the ranks, counted one by one."""
    pairs = [round(d, 12) for d in pairs if round(d, 12)]
    sizes = sorted(abs(d) for d in pairs)
    ranks = [
        sum(i + 1 for i, s in enumerate(sizes) if s == abs(d)) / sizes.count(abs(d)) for d in pairs
    ]
    w = sum(rank for rank, d in zip(ranks, pairs, strict=True) if d > 0)
    signed = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    low, high = (sum(s <= w for s in signed), sum(s >= w for s in signed))
    return min(1.0, 2 * min(low, high) / len(signed))


tenths = st.integers(-4, 4).map(lambda n: n / 10)  # ties and zeros are common


@given(st.lists(st.tuples(tenths, tenths), min_size=1, max_size=9))
def test_the_signed_rank_test_tries_every_sign(pairs):
    ours, theirs = zip(*pairs, strict=True)
    assert wilcoxon(ours, theirs) == pytest.approx(slow_wilcoxon([a - b for a, b in pairs]))


@pytest.mark.parametrize("number", [5, 12, 40])
def test_without_ties_it_is_scipys_exact_test(number):
    draw = np.random.default_rng(number)
    ours, theirs = draw.normal(0.4, 1, number), draw.normal(0, 1, number)
    wanted = stats.wilcoxon(ours, theirs, method="exact").pvalue
    assert wilcoxon(ours, theirs) == pytest.approx(wanted)


def test_three_seeds_alone_can_never_be_significant():
    assert wilcoxon([1, 2, 3], [0, 0, 0]) == pytest.approx(0.25)
    assert wilcoxon([1, 2], [1, 2]) == 1.0


def slow_holm(values):
    """Each p against all that are at least as small, as the textbook has it."""
    raised = []
    for p in values:
        before = sorted(values)[: sorted(values).index(p) + 1]
        raised.append(max(min(1, (len(values) - j) * q) for j, q in enumerate(before)))
    return raised


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_textbooks(values):
    assert holm(values) == pytest.approx(slow_holm(values))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


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


def test_a_variant_is_judged_on_the_pairs_of_all_seeds_and_tiers():
    found = verdicts(case(results()[::-1]))  # paired by seed, not by order
    assert set(found) == {"better", "noisy"}
    wanted = difference(*([0.75 * s for s in SCORES[n]] for n in ("better", "base")))
    assert found["better"].by_tier[MEAN].mean == pytest.approx(wanted.mean)
    assert found["better"].by_tier[MEAN].low == pytest.approx(wanted.low)
    assert found["better"].num_pairs == 6  # three seeds, two tiers; their mean is no tier
    assert found["better"].p == pytest.approx(2 / 2**6)
    assert found["better"].p_holm == pytest.approx(4 / 2**6)


def test_a_variant_is_compared_on_the_seeds_that_both_have():
    early = [r for r in results() if not (r.variant == "base" and r.seed == 2)]
    wanted = difference(
        [0.75 * s for s in SCORES["better"][:2]], [0.75 * s for s in SCORES["base"][:2]]
    )
    assert verdicts(case(early))["better"].by_tier[MEAN].mean == pytest.approx(wanted.mean)
    alone = [r for r in results() if r.variant != "base"]
    assert verdicts(case(alone)) == {}
    assert scores(case(alone)).rows[0][1] == "–"


def test_the_scores_have_a_row_a_variant():
    table = scores(case(results()[::-1]))
    by_name = {row[0]: row for row in table.rows}
    assert list(by_name) == ["noisy", "better", "base"]
    assert by_name["base"][1:5] == ["reference", "30.0 ± 7.5", "40.0 ± 10.0", "20.0 ± 5.0"]
    assert by_name["better"][1].startswith("+3.8 [")
    assert by_name["base"][5:] == ["2.100 ± 0.100", "1.0 kB", "2.0"]
    assert [row[0] for row in differences(case()).rows] == ["better", "noisy"]


def test_the_cost_of_a_target_is_that_of_the_first_score_that_reaches_it():
    run = result("base", 0, 0.4)  # 0, 0.1, 0.2, 0.3, 0.4 after rounds 0 to 4
    assert spent_to_reach(run, 0.15).bytes_up == 200
    assert spent_to_reach(run, 0.2).bytes_up == 200
    assert spent_to_reach(run, 0.5) is None
    rows = {row[0]: row for row in reach(case(target=0.29)).rows}
    assert rows["base"][1:3] == ["3 of 3", f"{(400 + 300 + 300) / 3:.0f} B"]
    assert rows["noisy"][1:3] == ["2 of 3", "–"]
    # Nine tenths of the reference's last, 0.4 on average.
    assert case().score_to_reach == pytest.approx(0.36)
    unseen = case([result("base", 0, 0.4, points=())])
    assert unseen.score_to_reach is None
    assert reach(unseen).rows == []


def test_columns_that_nobody_measured_are_left_out():
    assert "virtual time" not in costs(case()).columns
    timed = [result("base", 0, 0.4, spent=Spent(virtual_seconds=90.0))]
    table = costs(case(timed))
    assert table.rows[0][table.columns.index("virtual time")] == "1 min 30 s"
    assert clients(case([result("base", 0, 0.4, clients={})])).rows == []


def slow_starved(counts):
    """One expert of one layer at a time."""
    num_layers, num_experts = len(counts), len(counts[0])
    shares = [n / sum(layer) for layer in counts for n in layer]
    return [
        sum(s < 0.1 / num_experts for s in shares) / (num_layers * num_experts),
        sum(s > 2 / num_experts for s in shares) / (num_layers * num_experts),
    ]


def test_starved_and_captured_experts_are_counted_per_round():
    draw = np.random.default_rng(0)
    counts = (draw.pareto(0.4, (3, 2, 8)) * 10).astype(np.int64) + 1
    starved, captured = result("base", 0, 0.4, counts=counts).extreme_experts
    for r in range(3):
        assert [starved[r], captured[r]] == pytest.approx(slow_starved(counts[r].tolist()))
    assert starved.sum() > 0
    assert captured.sum() > 0


def test_load_is_relative_to_an_equal_share_and_a_layer_without_tokens_has_none():
    counts = np.array([[[6, 2, 0, 0], [0, 0, 0, 0]]])
    shares = relative_shares(counts)
    assert shares[0, 0].tolist() == [3.0, 1.0, 0.0, 0.0]
    assert np.isnan(shares[0, 1]).all()
    runs = [result("base", 0, 0.4, counts=counts[:, :1]), result("base", 1, 0.4)]
    assert mean_load(runs).tolist() == [[3.0, 1.0, 0.0, 0.0]]
    assert mean_load(runs[1:]) is None


def test_the_files_hold_every_run_and_every_case():
    other = case([result(n, 0, 0.2, case="b") for n in SCORES], name="b", overrides=("rounds=1",))
    made = study(case([result(n, 0, 0.4, case="a") for n in SCORES], name="a"), other)
    rows = list(csv.DictReader(as_csv(made).splitlines()))
    assert [(r["case"], r["variant"], float(r["high"])) for r in rows[2:4]] == [
        ("a", "noisy", 0.4),
        ("b", "base", 0.2),
    ]
    assert float(rows[0]["jain_index"]) == pytest.approx(0.9)
    tree = json.loads(json.dumps(as_json(made)))
    assert [(c["name"], len(c["runs"])) for c in tree["cases"]] == [("a", 3), ("b", 3)]
    assert set(tree["cases"][0]["differences"]) == {"better", "noisy"}
    text = render_markdown(made)
    assert text.index("# a") < text.index("# b")
    assert text.count("## Scores") == 2
    trials = (Trial("base", ("training.learning_rate=0.1",), 0.3, 1.0, chosen=True),)
    assert as_json(study(trials=trials))["search"]["trials"][0]["chosen"] is True

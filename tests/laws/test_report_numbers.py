"""Laws of the report's small numbers: labels that do not touch, intervals, units."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_folder import make_run

from fedmoe.report.figures import shades, spread
from fedmoe.report.run import read_run
from fedmoe.report.run_tables import tier_shares, wilson_interval
from fedmoe.report.units import bytes_text, flops_text, percent_text, seconds_text

heights = st.lists(st.floats(-100, 100), max_size=8)


@given(heights, st.floats(0.01, 5))
def test_labels_are_apart_and_in_order(positions, gap):
    moved = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    steps = np.diff([moved[i] for i in order])
    assert (steps >= gap - 1e-9).all()


@given(heights, st.floats(0.01, 5))
def test_labels_move_only_where_they_touch_and_about_their_mean(positions, gap):
    moved = spread(positions, gap)
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)
    if len(positions) < 2 or np.diff(sorted(positions)).min() >= gap:
        assert moved == pytest.approx(positions)


@given(st.integers(0, 400), st.integers(1, 400))
def test_the_interval_holds_the_share_and_narrows_with_more_examples(right, number):
    share = min(right, number) / number
    low, high = wilson_interval(share, number)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    wider = wilson_interval(share, 4 * number)
    assert wider[1] - wider[0] < high - low


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for truth in (0.05, 0.5, 0.9):
        shares = rng.binomial(200, truth, size=4000) / 200
        bounds = [wilson_interval(share, 200) for share in shares]
        covered = np.mean([low <= truth <= high for low, high in bounds])
        assert 0.93 < covered < 0.97


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_a_larger_tier_is_darker(number):
    colours = shades([str(k) for k in range(1, number + 1)])
    light = [np.dot(colour, [0.2126, 0.7152, 0.0722]) for colour in colours.values()]
    assert light == sorted(light, reverse=True)
    assert len(set(colours.values())) == number
    assert light[0] < 0.7  # still seen on white


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(1000), "1.0 kB"),
        (bytes_text(3_152_000), "3.2 MB"),
        (bytes_text(5e15), "5000 TB"),
        (flops_text(9.3e7), "93.0 MFLOP"),
        (bytes_text(None), "\u2013"),
        (percent_text(0.1234), "12.3%"),
        (percent_text(-0.02, signed=True), "-2.0"),
        (seconds_text(59.94), "59.9 s"),
        (seconds_text(119.7), "2 min 00 s"),
        (seconds_text(3725), "1 h 02 min"),
    ],
)
def test_units(text, expected):
    assert text == expected


def test_a_tiers_share_of_the_means_is_the_mean_over_rounds(tmp_path):
    run = read_run(make_run(tmp_path / "run", num_rounds=2))
    assert not tier_shares(run).rows  # a strategy without weights
    shares = [{"large": 0.9, "tiny": 0.1}, {"large": 0.5, "small": 0.5}]
    rounds = [{**line, "tier_shares": s} for line, s in zip(run.rounds, shares, strict=True)]
    found = {row[0]: row[1:] for row in tier_shares(replace(run, rounds=rounds)).rows}
    assert found["large"][-1] == "70.0%"
    assert [found[name][-1] for name in ("tiny", "small", "medium")] == ["5.0%", "25.0%", "0.0%"]
    assert next(iter(found)) == "tiny"  # by k

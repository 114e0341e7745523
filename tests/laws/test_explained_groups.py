"""What must hold of numbers on experts, whatever the run."""

import re

import numpy as np
import pytest
import torch

from fedmoe.explain.calibration import binned, calibration, expected_error
from fedmoe.explain.lift import LEVEL, lifts
from fedmoe.explain.page import groups
from fedmoe.explain.redundancy import similarities


def rows_of(rng, shares, rows=12, tokens=30):
    """Tokens of rows, each of which has shares of its own around those of its group."""
    own = rng.dirichlet(20 * np.asarray(shares), size=(rows, 2))
    return np.stack([[rng.multinomial(tokens, of) for of in row] for row in own])


EVEN = np.array([0.3, 0.3, 0.2, 0.1, 0.06, 0.04])
TILTED = np.array([0.05, 0.55, 0.2, 0.1, 0.06, 0.04])


def test_groups_without_a_difference_have_a_marked_cell_about_as_often_as_said(monkeypatch):
    monkeypatch.setattr("fedmoe.explain.lift.SHUFFLES", 1)
    rng, trials = np.random.default_rng(0), 100
    found = [
        lifts("label", rows_of(rng, EVEN, rows=36), ["a", "b", "c"] * 12, rng)
        for _ in range(trials)
    ]
    assert sum(bool(of.marked.any()) for of in found) <= 2 * LEVEL * trials
    single = np.mean([((of.low > 1) | (of.high < 1)).mean() for of in found])
    assert 0.02 < single < 0.08  # uncorrected, each cell errs at about 5%


def test_a_difference_is_marked_and_chance_tells_less():
    rng = np.random.default_rng(0)
    counts = np.concatenate([rows_of(rng, of, rows=24) for of in (EVEN, EVEN, TILTED)])
    groups = ["a"] * 24 + ["b"] * 24 + ["c"] * 24
    found = lifts("label", counts, groups, rng)
    assert found.marked[2, :, :2].all()
    assert (found.lift[2, :, 0] < 1).all()
    assert (found.lift[2, :, 1] > 1).all()
    assert (found.information > found.shuffled_high).all()
    assert found.chance < LEVEL
    dealt = lifts("label", counts, [groups[i] for i in rng.permutation(72)], rng)
    assert not dealt.marked.any()
    assert dealt.chance > LEVEL
    assert (dealt.information < found.information / 2).all()


def test_experts_and_groups_in_another_order_give_the_same_in_that_order():
    rng = np.random.default_rng(0)
    counts = np.concatenate([rows_of(rng, EVEN), rows_of(rng, TILTED)])
    found = lifts("label", counts, ["a"] * 12 + ["b"] * 12, np.random.default_rng(1))
    order = rng.permutation(6)
    other = lifts("label", counts[..., order], ["z"] * 12 + ["b"] * 12, np.random.default_rng(1))
    for name in ("lift", "low", "high", "marked"):
        expected = getattr(found, name)[::-1][..., order]
        assert getattr(other, name) == pytest.approx(expected)
    assert other.information == pytest.approx(found.information)


def test_where_all_experts_are_chosen_nothing_is_marked_and_nothing_is_told():
    counts = np.repeat(np.arange(5, 25), 8).reshape(20, 1, 8)
    found = lifts("label", counts, ["a", "b"] * 10, np.random.default_rng(0))
    assert found.lift == pytest.approx(1)
    assert not found.marked.any()
    assert found.information == pytest.approx(0)
    assert found.chance == 1


def test_a_rare_expert_is_not_judged_and_an_unused_one_has_no_lift():
    counts = np.zeros((20, 1, 3), dtype=int)
    counts[:, 0, 0] = 50
    counts[3, 0, 1] = 9  # all of one row: one group has them, the other none
    found = lifts("label", counts, ["a", "b"] * 10, np.random.default_rng(0))
    assert not found.marked.any()
    assert np.isnan(found.lift[:, 0, 2]).all()
    assert found.judged.sum() == 2


def test_one_group_is_no_comparison_and_small_groups_are_named():
    counts = np.ones((20, 1, 4), dtype=int)
    assert lifts("label", counts, ["a"] * 20, np.random.default_rng(0)) is None
    assert lifts("label", counts, [""] * 20, np.random.default_rng(0)) is None
    found = lifts("label", counts, ["a"] * 9 + ["b"] * 9 + ["c", ""], np.random.default_rng(0))
    assert found.names == ("a", "b")
    assert found.left_out == ("c",)


def test_experts_that_answer_alike_have_similarity_one_and_order_is_irrelevant():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 8, generator=generator) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    outputs = [x, y, x, 3 * x @ turn + 1, torch.ones(30, 8)]
    found = similarities(outputs)
    assert found[0, 2] == pytest.approx(1)
    assert found[0, 3] == pytest.approx(1)
    assert abs(float(found[0, 1])) < 0.3
    assert found[4, :4] == pytest.approx(torch.zeros(4), abs=1e-6)
    order = [3, 0, 4, 2, 1]
    again = similarities([outputs[i] for i in order])
    torch.testing.assert_close(again, found[order][:, order])


def test_strangers_do_not_look_alike_with_few_tokens():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(24, 200, generator=generator) for _ in range(6)]
    others = similarities(outputs) - torch.eye(6)
    assert others.abs().max() < 0.2  # the plain value is near 0.9 here


@pytest.mark.parametrize(("shift", "error"), [(0.0, 0.0), (0.2, 0.2)])
def test_the_error_is_how_far_confidence_lies_from_accuracy(shift, error):
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.1, 0.8, 40_000)
    right = rng.uniform(0, 1, 40_000) < chance
    row = torch.arange(40_000) // 100
    sums = binned(torch.tensor(chance + shift), torch.tensor(right), row, 400).numpy()
    found = calibration("low", 1, sums, rng)
    assert found.error == pytest.approx(error, abs=0.015)
    assert found.low - 0.005 <= error <= found.high + 0.005
    assert expected_error(sums.sum(0)[::-1]) == pytest.approx(found.error)


def test_the_table_stars_what_is_sure_and_names_the_highest_lift_where_nothing_is():
    rng = np.random.default_rng(0)
    counts = np.concatenate([rows_of(rng, of, rows=24) for of in (EVEN, EVEN, TILTED)])
    table = groups(lifts("label", counts, ["a"] * 24 + ["b"] * 24 + ["c"] * 24, rng))
    highest = {row[0]: row[1] for row in table.rows}
    assert re.fullmatch(r"\d\.1: 1\.\d \(1\.\d to \d\.\d\)\*(; .*\*)?", highest["c"])
    dealt = groups(lifts("label", counts, ["a", "b", "c"] * 24, rng))
    assert all(re.fullmatch(r"\d\.\d: 1\.\d \(0\.\d to \d\.\d\)", row[1]) for row in dealt.rows)
    assert all(row[-2:] == ["0", "0"] for row in dealt.rows)
    assert "Of 36 cells, 36 have 20 expected tokens" in dealt.note

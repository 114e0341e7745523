"""Numbers on experts against slow loops: lift, information, calibration, similarity, routing."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from fedmoe.adapter import Adapter
from fedmoe.data.text import Tokens, collate
from fedmoe.explain.calibration import BINS, binned, calibration, expected_error
from fedmoe.explain.lift import lifts
from fedmoe.explain.measured import confidence, measured
from fedmoe.explain.recorded import total_variation
from fedmoe.explain.redundancy import redundancy, similarities
from fedmoe.training.similarity import linear_cka

GROUPS = ["a"] * 9 + ["b"] * 14 + ["c"] * 7


@pytest.fixture(scope="module")
def counts():
    """Tokens of 30 rows in 2 layers of 5 experts; rows differ more than chance makes them."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([2.0, 1.0, 1.0, 0.5, 0.1], size=(30, 2))
    return np.stack([[rng.multinomial(40, of) for of in row] for row in shares])


def slow_share(counts, groups, name, layer, expert):
    """A group's share of one expert, a row at a time."""
    got = total = 0
    for row, group in zip(counts, groups, strict=True):
        if group == name:
            got += int(row[layer, expert])
            total += sum(int(n) for n in row[layer])
    return got / total


def test_lift_and_information_are_those_of_a_loop(counts):
    found = lifts("label", counts, GROUPS, np.random.default_rng(1))
    assert found.names == ("a", "b", "c")
    assert found.rows == (9, 14, 7)
    for layer in range(2):
        bits = 0.0
        for expert in range(5):
            shares = [slow_share(counts, GROUPS, name, layer, expert) for name in "abc"]
            mean = sum(shares) / 3
            parts = [share / sum(shares) for share in shares]
            entropy = -sum(p * math.log(p, 3) for p in parts if p)
            assert found.entropy[layer, expert] == pytest.approx(entropy)
            for place, share in enumerate(shares):
                assert found.lift[place, layer, expert] == pytest.approx(share / mean)
                bits += share * math.log2(share / mean) / 3 if share else 0
        assert found.information[layer] == pytest.approx(bits)


def test_an_interval_is_as_wide_as_a_bootstrap_over_rows_says(counts):
    found, rng = lifts("label", counts, GROUPS, np.random.default_rng(1)), np.random.default_rng(2)
    places = [np.flatnonzero(np.array(GROUPS) == name) for name in "abc"]
    again = []
    for _ in range(600):
        shares = np.stack([_share(counts[rng.choice(own, len(own))]) for own in places])
        again.append(shares - shares.mean(0))
    mean = np.mean([_share(counts[own]) for own in places], axis=0)
    student = np.array([2.306, 2.160, 2.447])[:, None, None]  # of 8, 13 and 6 degrees, at 2.5%
    error, expected = (found.high - found.lift) * mean / student, np.std(again, axis=0)
    # A bootstrap of n rows falls short by a factor of sqrt((n - 1) / n).
    assert error[..., :4] == pytest.approx(expected[..., :4], rel=0.2)
    assert (error[..., 4] > 0.9 * expected[..., 4]).all()  # of a rare expert: as by chance alone


def _share(counts):
    total = counts.sum(0)
    return total / total.sum(-1, keepdims=True)


def test_the_calibration_error_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    sure, right, row = rng.uniform(0, 1, 300), rng.uniform(0, 1, 300) < 0.6, rng.integers(0, 9, 300)
    sure[:2] = 0.0, 1.0
    tensors = (torch.tensor(sure), torch.tensor(right), torch.tensor(row))
    sums = binned(*tensors, 9).numpy()
    slow = 0.0
    for place in range(BINS):
        low, high = place / BINS, (place + 1) / BINS
        inside = [n for n in range(300) if low < sure[n] <= high or (not place and not sure[n])]
        if inside:
            accuracy = sum(bool(right[n]) for n in inside) / len(inside)
            mean = sum(float(sure[n]) for n in inside) / len(inside)
            slow += len(inside) / 300 * abs(accuracy - mean)
    assert expected_error(sums.sum(0)) == pytest.approx(slow)
    found = calibration("high", 4, sums, rng)
    assert found.error == pytest.approx(slow)
    assert found.low < slow
    assert found.tokens.sum() == 300
    assert sums[4, :, 0].sum() == (row == 4).sum()


def slow_similarity(x, y):
    """The unbiased HSIC of Song et al. 2012 (eq. 5), term by term, as a cosine."""

    def hsic(k, m):
        n = len(k)
        k, m = (of - np.diag(np.diag(of)) for of in (k, m))
        ones = np.ones(n)
        total = np.trace(k @ m) - 2 / (n - 2) * (ones @ k @ m @ ones)
        return total + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))

    k, m = (of @ of.T for of in (x.double().numpy(), y.double().numpy()))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_similarity_is_the_unbiased_cka_and_near_the_plain_one_with_many_tokens():
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(2000, 6, generator=generator) for _ in range(2))
    outputs = [x, x + z, z]
    few, many = similarities([of[:20] for of in outputs]), similarities(outputs)
    for a, b in combinations(range(3), 2):
        assert few[a, b] == pytest.approx(
            slow_similarity(outputs[a][:20], outputs[b][:20]), abs=1e-5
        )
        assert many[a, b] == pytest.approx(float(linear_cka(outputs[a], outputs[b])), abs=0.01)


def test_pairs_and_candidates_are_ordered_as_they_say():
    alike = np.array([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    found = redundancy(alike, np.array([[20, 60, 10]]), 64)
    assert [(p.first, p.second) for p in found.pairs] == [(0, 1), (1, 2), (0, 2)]
    # Expert 2 is used less, and resembles no other; expert 1 has more than the equal share.
    assert [(c.layer, c.expert, c.like) for c in found.candidates] == [(0, 0, 1), (0, 2, 1)]
    first, second = found.candidates
    assert (first.load, first.similarity) == (pytest.approx(2 / 3), 0.9)
    assert (second.load, second.similarity) == (pytest.approx(1 / 3), 0.2)


@pytest.fixture(scope="module")
def routed(tiny_model, random_adapter):
    """A tiny model with an adapter at k = 2, rows of unlike lengths, and what was measured."""
    model = tiny_model()
    model.load(random_adapter(model.layout, std=0.3))
    model.set_budget(2)
    rng = np.random.default_rng(0)
    rows = [Tokens(tuple(rng.integers(2, 64, n).tolist()), n // 2) for n in (9, 4, 12, 7, 5)]
    return model, rows, measured(model, rows, 2, 0)


def test_the_tokens_of_each_row_are_those_that_a_row_alone_has(routed):
    model, rows, found = routed
    adapter = model.read()
    base = torch.zeros_like(torch.from_numpy(found.base)).long()
    for row, counts in zip(rows, found.counts, strict=True):
        with model.counting() as seen:
            model.target_states(collate([row], 0))
        assert counts.sum(0).tolist() == seen.tolist()
        # Of 2n tokens the last is no input; the last of the prompt predicts the response.
        assert counts.sum((1, 2)).tolist() == [4 * n for n in _sizes(row)]
    model.load(Adapter(adapter.layout, torch.zeros_like(adapter.flat)))
    for row in rows:
        with model.counting() as seen:
            model.target_states(collate([row], 0))
        base += seen
    model.load(adapter)
    assert base.tolist() == found.base.tolist()
    load = total_variation(found.counts.sum((0, 1)), found.base)
    assert (found.changed > 0).all()
    assert (load <= found.changed + 1e-6).all()  # a load moves by changed choices alone


def _sizes(row):
    before = row.prompt_length - 1
    return before, len(row.ids) - 1 - before


def test_confidence_is_that_of_the_likeliest_token(routed):
    model, rows, _ = routed
    sums = confidence(model, rows, 2, 0)
    for row, own in zip(rows, sums, strict=True):
        with torch.no_grad():
            chances = model.target_logits(collate([row], 0)).softmax(-1)
        best, index = chances.max(-1)
        right = index == torch.tensor(row.ids[row.prompt_length :])
        assert own.sum(0) == pytest.approx(
            [len(best), float(best.sum()), int(right.sum())], rel=1e-4
        )

"""What a comparison says of experts and their load, against slow loops."""

import numpy as np
import pytest
from test_comparison import result

from fedmoe.comparison.result import mean_load
from fedmoe.report.expert_load import relative_shares


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

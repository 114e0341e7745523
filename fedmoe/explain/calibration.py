"""Calibration: whether a model is right as often as it is confident."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 15
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Calibration:
    """The confidence and the accuracy of a tier, over the response tokens of its rows."""

    tier: str
    top_k: int
    rows: int
    tokens: np.ndarray
    """(bins,): tokens by the probability of the likeliest one, in equal steps from 0 to 1."""
    confidence: np.ndarray
    """(bins,): that probability's mean; NaN without tokens."""
    accuracy: np.ndarray
    """(bins,): the share of tokens whose likeliest one is the response's; NaN without tokens."""
    error: float
    """Expected calibration error, 0 to 1."""
    low: float
    high: float
    """Of its 95% interval, by a bootstrap over rows."""


def expected_error(sums: np.ndarray) -> np.ndarray:
    r"""Return the expected calibration error, $\sum_m \frac{|B_m|}{n} |acc(B_m) - conf(B_m)|$.

    It is above 0 by chance alone, the more so the fewer the tokens.

    Args:
        sums: (..., bins, 3): each bin's tokens, their summed confidence, and how many are right.

    Source: Guo et al. 2017 (arXiv:1706.04599, eq. 3), over tokens that follow the true ones.
    """
    gaps = np.abs(sums[..., 1] - sums[..., 2]).sum(-1)
    return gaps / np.maximum(sums[..., 0].sum(-1), 1)


def binned(confidence: Tensor, right: Tensor, row: Tensor, rows: int) -> Tensor:
    """Return sums (rows, bins, 3) over tokens, each with its row, for `expected_error`."""
    place = row * BINS + (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence)], -1)
    sums = torch.zeros(rows * BINS, 3, dtype=torch.float64)
    return sums.index_add_(0, place.cpu(), values.double().cpu()).view(rows, BINS, 3)


def calibration(tier: str, top_k: int, sums: np.ndarray, rng: np.random.Generator) -> Calibration:
    """Return a tier's calibration from the sums (rows, bins, 3) of its rows."""
    rows, total = len(sums), sums.sum(0)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).astype(np.float64)
    again = (weights @ sums.reshape(rows, -1)).reshape(RESAMPLES, BINS, 3)
    error = float(expected_error(total))
    # Turned around the error (basic bootstrap): chance adds as much again to each resample.
    high, low = 2 * error - np.quantile(expected_error(again), (0.025, 0.975))
    with np.errstate(invalid="ignore"):
        means = total[:, 1:] / total[:, :1]
    return Calibration(
        tier,
        top_k,
        rows,
        total[:, 0].astype(np.int64),
        means[:, 0],
        means[:, 1],
        error,
        max(float(low), 0.0),
        max(float(high), 0.0),
    )

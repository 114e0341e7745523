"""Constants of a machine, from a few measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmoe.budget.measure import Sample
from fedmoe.budget.model import Constants, hidden_bytes, memory, step_flops
from fedmoe.budget.shape import Setting, Shape


def settings_to_measure(longest: Setting, full_top_k: int) -> tuple[Setting, ...]:
    """The steps a machine is calibrated with: k = 1 and k = K, and the smallest micro-batch.

    `longest` is a micro-batch of the longest examples. The first two share their tokens, so they
    cannot tell what a step costs however small it is; a third, of one example, can.
    """
    small = replace(longest, top_k=1, batch_size=1)
    steps = (replace(longest, top_k=1), replace(longest, top_k=full_top_k), small)
    return tuple(dict.fromkeys(steps))


def calibrated(shape: Shape, samples: Sequence[Sample]) -> Constants:
    r"""The constants that fit measured steps best.

    $$\min \sum_i (\hat y_i / y_i - 1)^2$$

    by non-negative least squares, once over bytes and once over seconds: two constants each. A
    relative error counts alike in a small and in a large setting. With one sample the constant
    parts are zero.
    """
    assert samples, "nothing was measured"
    bare = Constants()
    spare = [x.peak_bytes - memory(shape, x.setting, bare).above_weights for x in samples]
    hidden = [[1.0, hidden_bytes(shape, x.setting)] for x in samples]
    fixed_bytes, slack = _fit(hidden, spare, [x.peak_bytes for x in samples])
    flops = [[1.0, step_flops(shape, x.setting)] for x in samples]
    seconds = [x.seconds for x in samples]
    per_step, per_flop = _fit(flops, seconds, seconds)
    return Constants(
        fixed_bytes=fixed_bytes, slack=slack, seconds_per_step=per_step, seconds_per_flop=per_flop
    )


def _fit(
    rows: Sequence[Sequence[float]], found: Sequence[float], of: Sequence[float]
) -> tuple[float, float]:
    """Two non-negative numbers, the constant part and the slope; errors count relative to `of`."""
    x, y, size = np.array(rows), np.array(found), np.array(of, dtype=float)
    weight = 1 / np.where(size > 0, size, size.max() or 1.0)  # a count may be zero, if a poor one
    if len(y) == 1:
        return 0.0, max(0.0, float(y[0] / x[0, 1]))
    scale = x.max(0)  # bytes and FLOPs must be near one
    a, b = x / scale * weight[:, None], y * weight
    fits = np.zeros((4, 2))  # of both numbers, of each alone, of none
    for fit, kept in zip(fits, ([0, 1], [0], [1]), strict=False):
        fit[kept] = np.linalg.lstsq(a[:, kept], b, rcond=None)[0]
    allowed = (fit for fit in fits if (fit >= 0).all())
    constant, slope = min(allowed, key=lambda fit: float(np.linalg.norm(a @ fit - b))) / scale
    return float(constant), float(slope)

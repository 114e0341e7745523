"""Expert load: which experts tokens go to, as multiples of an equal share."""

import numpy as np

STARVED, CAPTURED = 0.1, 2.0
"""Multiples of the equal share 1/E of a layer's tokens below, or above, which an expert counts as
starved, or captured."""


def relative_shares(counts: np.ndarray) -> np.ndarray:
    """Return each expert's share of its layer's tokens, times the number of experts: 1 is equal.

    Args:
        counts: (..., layers, experts) routed tokens.

    Returns:
        float64 of the same shape; NaN in a layer without tokens.
    """
    total = counts.sum(-1, keepdims=True).astype(np.float64)
    total[total == 0] = np.nan
    return counts / total * counts.shape[-1]


def starved_and_captured(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of all experts that are starved, and that are captured.

    Args:
        counts: (..., layers, experts) routed tokens; in a layer without any, no expert is either.

    >>> [float(share) for share in starved_and_captured(np.array([[9, 1, 0, 0]]))]
    [0.5, 0.25]
    """
    load = relative_shares(counts)  # a comparison with NaN is False
    return (load < STARVED).mean((-2, -1)), (load > CAPTURED).mean((-2, -1))

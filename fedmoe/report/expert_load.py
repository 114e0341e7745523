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

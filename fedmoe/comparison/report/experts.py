"""Which experts a run's tokens went to: load over all rounds, starved and captured experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmoe.comparison.report.result import Result
from fedmoe.report.expert_load import CAPTURED, STARVED, relative_shares


def mean_load(results: Sequence[Result]) -> np.ndarray | None:
    """(layers, experts): relative share over all rounds, averaged over the runs that have one."""
    loads = [relative_shares(r.counts.sum(0)) for r in results if r.counts is not None]
    return np.mean(loads, axis=0) if loads else None


def starved_and_captured(result: Result) -> tuple[np.ndarray, np.ndarray] | None:
    """Per round, the share of all experts below `STARVED` and above `CAPTURED` equal shares.

    A round without tokens in any layer has neither: its shares are 0.
    """
    if result.counts is None:
        return None
    shares = relative_shares(result.counts)  # a comparison with NaN is False
    return (shares < STARVED).mean((1, 2)), (shares > CAPTURED).mean((1, 2))

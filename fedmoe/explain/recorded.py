"""A run's own record of its routing: tokens by owner and by round, no text and no token."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmoe.report.run import Run


@dataclass(frozen=True, eq=False)
class Recorded:
    """Sums over all local training; arrays are (owners, layers, experts)."""

    names: tuple[str, ...]
    """Owners that trained."""
    tiers: tuple[str, ...]
    top_k: tuple[int, ...]
    """Experts per token; where an owner trained with several, the last."""
    tokens: np.ndarray
    """int64."""
    lift: np.ndarray
    """Share over the mean share of owners with the same k: another k shares tokens out otherwise.
    NaN for an owner without its like, and for an expert that none of them used."""
    distance: np.ndarray
    """(rounds, layers): total variation between the loads of each round and of the first one."""


def recorded(run: Run) -> Recorded | None:
    """Return a run's own counts; None where it has none."""
    if run.by_client is None:
        return None
    owners = [c for c in range(len(run.by_client)) if run.by_client[c].sum() and run.ok(client=c)]
    last = {c: run.ok(client=c)[-1] for c in owners}
    top_k = [last[c]["top_k"] for c in owners]
    tokens = run.by_client[owners]
    return Recorded(
        names=tuple(run.name_of(c) for c in owners),
        tiers=tuple(last[c]["tier"] for c in owners),
        top_k=tuple(top_k),
        tokens=tokens,
        lift=_lift(tokens, top_k),
        distance=_distances(run.folder),
    )


def total_variation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return half the summed difference of two loads' shares (..., experts): 0 alike, 1 disjoint.

    >>> float(total_variation(np.array([3, 1]), np.array([1, 3])))
    0.5
    """
    shares = [of / np.maximum(of.sum(-1, keepdims=True), 1) for of in (x, y)]
    return np.abs(shares[0] - shares[1]).sum(-1) / 2


def _lift(tokens: np.ndarray, top_k: list[int]) -> np.ndarray:
    share = tokens / np.maximum(tokens.sum(-1, keepdims=True), 1)
    lift, alike = np.full(share.shape, np.nan), defaultdict(list)
    for place, k in enumerate(top_k):
        alike[k].append(place)
    for places in alike.values():
        if len(places) > 1:
            mean = share[places].mean(0)
            lift[places] = np.divide(
                share[places], mean, out=np.full(share[places].shape, np.nan), where=mean > 0
            )
    return lift


def _distances(folder: Path) -> np.ndarray:
    with np.load(folder / "activations.npz", allow_pickle=False) as arrays:
        by_round = arrays["by_round"]
    counts = by_round[by_round.sum((1, 2)) > 0]
    return total_variation(counts, counts[:1]) if len(counts) else np.zeros((0, 0))

"""Lift: how much more of a group's tokens an expert gets than the mean group gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""Chance of an error: of a 95% interval, and of any marked cell at all where none should be."""
LEAST_ROWS, MOST_GROUPS = 5, 24
"""A group of fewer rows is left out; of more groups, those with the most rows count."""
LEAST_EXPECTED = 20
"""Tokens that an expert has to get of a group, by the mean of groups, for a cell to be judged."""
SHUFFLES = 200


@dataclass(frozen=True, eq=False)
class Lifts:
    """Groups of rows by the experts that carry them; arrays are (groups, layers, experts)."""

    kind: str
    """The kind of group: `label`, `owner` or `role`."""
    names: tuple[str, ...]
    rows: tuple[int, ...]
    lift: np.ndarray
    """NaN for an expert that no token reached."""
    low: np.ndarray
    high: np.ndarray
    """Of a 95% interval for this cell alone."""
    marked: np.ndarray
    """bool: the interval that is corrected for all judged cells excludes 1."""
    judged: np.ndarray
    """bool: cells with tokens enough to be judged, by whose number intervals are corrected."""
    entropy: np.ndarray
    """(layers, experts): how evenly groups use an expert, 1 evenly, 0 one group alone."""
    information: np.ndarray
    """(layers,): mutual information of group and expert, in bits per choice."""
    shuffled: np.ndarray
    """(layers,): its mean where rows are dealt to the groups by chance."""
    shuffled_high: np.ndarray
    """(layers,): the value that 95% of such deals stay below."""
    chance: float
    """The share of deals that inform at least as much, summed over layers; the p-value of that."""
    left_out: tuple[str, ...]
    """Groups with too few rows, or beyond the most that are compared."""


def lifts(
    kind: str, counts: np.ndarray, groups: Sequence[str], rng: np.random.Generator
) -> Lifts | None:
    r"""Compare groups of rows by the experts that their tokens go to; None for less than two.

    $$\text{lift}_{ge} = s_{ge} / \bar s_e, \quad
      s_{ge} = \sum_{r \in g} n_{re} / \sum_{r \in g, e'} n_{re'}, \quad
      \bar s_e = \tfrac{1}{G} \sum_g s_{ge}$$

    in each layer: groups weigh alike, however many rows they have. The interval is
    $\text{lift} \pm t\,\text{se}(s_{ge} - \bar s_e) / \bar s_e$ with t of Student's distribution
    of $|g| - 1$ degrees; rows, not tokens, are what varies, by the linearised variance of a ratio
    (Cochran 1977, Sampling Techniques, eq. 6.13), as a bootstrap over rows would find it, but not
    below that of independent tokens. To be marked, a cell has to exclude 1 at LEVEL divided by the
    number of judged cells (Bonferroni).

    Args:
        counts: (rows, layers, experts): tokens of each row that each expert got.
        groups: each row's group; an empty name is none.
    """
    sizes = Counter(group for group in groups if group)
    large = [name for name, n in sizes.most_common() if n >= LEAST_ROWS][:MOST_GROUPS]
    if len(large) < 2:
        return None
    names = sorted(large)
    member = np.array([names.index(g) if g in large else -1 for g in groups])
    counts, member = counts[member >= 0].astype(np.float64), member[member >= 0]
    share, variance, tokens = _shares(counts, member, len(names))
    mean, number = share.mean(0), len(names)
    floor = mean * (1 - mean) / np.maximum(tokens, 1)[..., None]
    variance = np.maximum(variance, floor)
    around = (1 - 2 / number) * variance + variance.sum(0) / number**2
    judged = mean * tokens[..., None] >= LEAST_EXPECTED
    with np.errstate(divide="ignore", invalid="ignore"):
        lift, error = share / mean, np.sqrt(around) / mean
        rows = np.bincount(member)
        half, corrected = (
            _student(rows, LEVEL / m)[:, None, None] * error for m in (1, max(judged.sum(), 1))
        )
        marked = judged & (np.abs(lift - 1) > corrected)
    told = mutual_information(share)
    null = np.stack([_information(counts, rng.permutation(member)) for _ in range(SHUFFLES)])
    return Lifts(
        kind=kind,
        names=tuple(names),
        rows=tuple(rows.tolist()),
        lift=lift,
        low=np.maximum(lift - half, 0),
        high=lift + half,
        marked=marked,
        judged=judged,
        entropy=_entropy(share),
        information=told,
        shuffled=null.mean(0),
        shuffled_high=np.quantile(null, 1 - LEVEL, axis=0),
        chance=float((1 + (null.sum(1) >= told.sum() - 1e-12).sum()) / (1 + SHUFFLES)),
        left_out=tuple(sorted({*sizes} - {*names})),
    )


def mutual_information(share: np.ndarray) -> np.ndarray:
    r"""Return $\frac{1}{G} \sum_g \sum_e s_{ge} \log_2 (s_{ge} / \bar s_e)$ per layer, in bits.

    It is the mutual information of group and expert where groups are equally likely: 0 where all
    groups are routed alike, at most the log of the number of groups.

    Args:
        share: (groups, layers, experts).
    """
    ratio = np.divide(share, share.mean(0), out=np.ones_like(share), where=share > 0)
    return (share * np.log2(ratio)).sum(-1).mean(0)


def _information(counts: np.ndarray, member: np.ndarray) -> np.ndarray:
    of_group = np.eye(member.max() + 1)[:, member] @ counts.reshape(len(counts), -1)
    total = of_group.reshape(-1, *counts.shape[1:])
    return mutual_information(total / np.maximum(total.sum(-1, keepdims=True), 1))


def _shares(
    counts: np.ndarray, member: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the groups' shares of tokens, their variances, and their tokens by layer."""
    shares, variances, tokens = [], [], []
    for group in range(number):
        own = counts[member == group]
        size, n = own.sum(-1), len(own)
        total = np.maximum(size.sum(0), 1)[:, None]
        share = own.sum(0) / total
        residual = own - share * size[..., None]
        shares.append(share)
        variances.append((residual**2).sum(0) / total**2 * n / (n - 1))
        tokens.append(size.sum(0))
    return np.stack(shares), np.stack(variances), np.stack(tokens)


def _entropy(share: np.ndarray) -> np.ndarray:
    """Return the entropy of each expert's groups, 0 to 1; NaN for an expert without tokens."""
    total = share.sum(0)
    part = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
    logs = np.log(part, out=np.zeros_like(part), where=part > 0)
    return np.where(total > 0, -(part * logs).sum(0) / np.log(len(share)), np.nan)


def _student(rows: np.ndarray, level: float) -> np.ndarray:
    from scipy.stats import t

    return t.isf(level / 2, rows - 1)

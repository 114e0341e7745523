"""Redundancy: how alike experts answer the same tokens, and which ones could be tried without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from fedmoe.report.expert_load import relative_shares

MOST_PAIRS = 12
"""Pairs, and candidates, that are named."""


@dataclass(frozen=True)
class Pair:
    """Two experts of a layer."""

    layer: int
    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class Candidate:
    """An expert that few tokens reach and another one resembles."""

    layer: int
    expert: int
    load: float
    """Its tokens as a multiple of the equal share."""
    like: int
    similarity: float


@dataclass(frozen=True, eq=False)
class Redundancy:
    """The similarity of all pairs of experts."""

    tokens: int
    """Tokens that all experts answered."""
    similarity: np.ndarray
    """(layers, experts, experts)."""
    pairs: tuple[Pair, ...]
    """The most similar ones."""
    candidates: tuple[Candidate, ...]
    """Experts below the equal share, by load times dissimilarity, the smallest first."""


def similarities(outputs: Iterable[Tensor]) -> Tensor:
    r"""Return the linear CKA of every pair of experts' outputs (tokens, width) for the same tokens.

    $$\frac{\langle \tilde K, \tilde L \rangle}
      {\lVert \tilde K \rVert \, \lVert \tilde L \rVert}, \quad K = X X^T$$

    Each Gram matrix is U-centred, which makes its inner products unbiased: the plain value nears 1
    for any two experts with fewer tokens than dimensions. An expert whose output does not vary
    resembles none. One expert's outputs are in memory at a time, and tokens squared values of each.

    Source: CKA of Kornblith et al. 2019 (arXiv:1905.00414, eq. 3) with the unbiased HSIC of Song et
    al. 2012 (eq. 5), as Nguyen et al. 2020 (arXiv:2010.15327, eq. 3) use it.
    """
    grams = torch.stack([_centred_gram(x).flatten() for x in outputs])
    return (grams @ grams.T).cpu().fill_diagonal_(1.0)


def _centred_gram(x: Tensor) -> Tensor:
    """Return the U-centred Gram matrix of outputs, of norm 1 or 0."""
    n = len(x)
    x = x.double() - x.double().mean(0)
    gram = (x @ x.T).fill_diagonal_(0.0)
    rows = gram.sum(0) / (n - 2)
    gram += gram.sum() / ((n - 1) * (n - 2)) - rows - rows.unsqueeze(1)
    gram.fill_diagonal_(0.0)
    return (gram / gram.norm().clamp_min(1e-300)).float()


def redundancy(similarity: np.ndarray, counts: np.ndarray, tokens: int) -> Redundancy:
    """Return the most similar pairs, and the least used experts with the likest neighbours.

    Args:
        similarity: (layers, experts, experts).
        counts: (layers, experts): tokens of the sample that each expert got.
        tokens: that all experts answered.
    """
    number = similarity.shape[-1]
    pairs = [
        Pair(layer, a, b, float(of[a, b]))
        for layer, of in enumerate(similarity)
        for a, b in combinations(range(number), 2)
    ]
    load, others = relative_shares(counts), similarity - 2 * np.eye(number)
    found = [
        Candidate(layer, e, float(load[layer, e]), int(of[e].argmax()), float(of[e].max()))
        for layer, of in enumerate(others if number > 1 else ())
        for e in range(number)
        if load[layer, e] < 1
    ]
    found.sort(key=lambda c: (c.load * (1 - c.similarity), c.layer, c.expert))
    pairs.sort(key=lambda p: (-p.similarity, p.layer, p.first, p.second))
    return Redundancy(tokens, similarity, tuple(pairs[:MOST_PAIRS]), tuple(found[:MOST_PAIRS]))

"""The best low-rank factors of a weighted sum of LoRA products, found without forming the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.errors import AggregationError

LARGEST_CORE = 1000
"""Sum of ranks above which an eigendecomposition is faster than two QRs and an SVD."""


class Factored(NamedTuple):
    """`B @ A` is the best approximation of its rank; `values` are the singular values of the sum.

    `B` is (..., out, rank), `A` is (..., rank, in), `values` float64 (..., min(sum of ranks, out,
    in)), falling.
    """

    B: Tensor
    A: Tensor
    values: Tensor


def best_factors(
    weights: Float[Tensor, " clients *experts"],
    scales: Sequence[float],
    Bs: Sequence[Tensor],
    As: Sequence[Tensor],
    rank: int,
) -> Factored:
    r"""Factors of rank `rank` that are nearest to the clients' weighted mean product.

    $$B A = \arg\min_{\mathrm{rank}\,r} \Big\| B A - \sum_c w_c s_c B_c A_c \Big\|_F$$

    by $[w_c s_c B_c] = Q_B R_B$, $[A_c]^T = Q_A R_A$, $R_B R_A^T = U S V^T$ (R by R, R the sum of
    ranks): $B = Q_B U_r S_r^{1/2}$, $A = S_r^{1/2} V_r^T Q_A^T$. All experts go in one call. Work
    runs in float64. Clients of weight zero and zero factors add zeros, never NaN; where the sum has
    a lower rank than `rank`, the last columns of B and rows of A are zero. Of each pair of singular
    vectors the sign is the one that makes the largest entry of the column of B positive. Above
    `LARGEST_CORE`, or past the sides of the sum, the small side's Gram matrix is decomposed: the
    factors stay exact, `values` below 1e-8 of the largest are noise.

    Args:
        weights: the clients' shares w_c, per expert or for one matrix.
        scales: the clients' s_c = alpha_c / rank_c; fold the receiver's own out of the result.
        Bs: per client (*experts, out, rank_c).
        As: per client (*experts, rank_c, in).
        rank: of the result.

    Raises:
        AggregationError: no clients, or a weight, scale or factor is not finite.

    Source: FlexLoRA (Bai et al. 2024, arXiv:2402.11505), which forms the sum and takes its dense
    SVD; the factored form is ours. FLoRIST (arXiv:2506.09199) picks `rank` from `values`.
    """
    if not len(Bs):
        raise AggregationError("no client factors to combine in this round")
    assert len(weights) == len(scales) == len(Bs) == len(As), (len(weights), len(scales), len(Bs))
    gammas = [w.double()[..., None, None] * s for w, s in zip(weights, scales, strict=True)]
    left = torch.cat([g * b.double() for g, b in zip(gammas, Bs, strict=True)], -1)
    right = torch.cat([a.double().mT for a in As], -1)
    if not (left.isfinite().all() and right.isfinite().all()):
        raise AggregationError("a weight, scale or LoRA factor is not finite")
    sides = left.shape[-2], right.shape[-2]
    by_core = left.shape[-1] <= min(*sides, LARGEST_CORE)
    u, values, v = _by_core(left, right) if by_core else _by_gram(left, right, rank)
    return _split(u, values, v, rank, Bs[0].dtype)


def _by_core(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors and values of `left @ right.mT`; vectors are columns."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right)
    u, values, vh = torch.linalg.svd(r_left @ r_right.mT)
    return q_left @ u, values, q_right @ vh.mT


def _by_gram(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for the first `rank`, from the eigenvectors of the smaller of M M^T and M^T M."""
    if left.shape[-2] > right.shape[-2]:
        v, values, u = _by_gram(right, left, rank)
        return u, values, v
    gram = left @ (right.mT @ right) @ left.mT
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.flip(-1)[..., : left.shape[-1]].clamp(min=0).sqrt()
    u = vectors.flip(-1)[..., : min(rank, left.shape[-1])]
    # The rows of U^T M have the singular values as norms, to full accuracy.
    rows = right @ (left.mT @ u)
    norms = torch.linalg.vector_norm(rows, dim=-2)
    values[..., :rank] = norms[..., : values.shape[-1]]
    return u, values, rows / norms.where(norms > 0, 1).unsqueeze(-2)


def _split(u: Tensor, values: Tensor, v: Tensor, rank: int, dtype: torch.dtype) -> Factored:
    """The first `rank` triples as B and A, each with the root of the value, padded with zeros."""
    u, v = u[..., :rank], v[..., :rank]
    largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    rounding = values[..., None, :1] * max(u.shape[-2], v.shape[-2]) * torch.finfo(u.dtype).eps
    root = values[..., None, :rank]
    root = root.where(root > rounding, 0).sqrt()
    signed = torch.where(largest < 0, -root, root)
    pad = (0, rank - signed.shape[-1])
    # Plus 0.0, for a cut component of -0.0 would travel.
    b, a = (torch.nn.functional.pad(x * signed + 0.0, pad) for x in (u, v))
    return Factored(b.to(dtype), a.mT.contiguous().to(dtype), values)

"""The router of a split layer, which chooses the experts that matter at nearly equal weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUTER_STD = 1e-4
"""Standard deviation of the logits. Softmax then gives each expert 1/E within 0.01 %, while its
float32 steps near 1/E (6e-8 of it) are 1,600 times finer than the spread: the order survives."""
RIDGE = 1e-3
"""Ridge penalty, as a share of the mean squared feature."""


def fit_router(x: Tensor, outputs: Tensor) -> Tensor:
    r"""Return the weights (experts, hidden) whose logits best predict experts' large outputs.

    $$\min_W \|X W^T - \bar Y\|^2 + \lambda \|W\|^2, \quad
      \bar Y_{te} = Y_{te} - \tfrac1E \sum_{e'} Y_{te'}$$

    then scaled to logits of standard deviation 1e-4. Only the order of a token's logits decides,
    so the mean over experts is taken out of `outputs`. Solved in float64.

    Args:
        x: the layer's inputs, (tokens, hidden).
        outputs: the norm of each expert's output, (tokens, experts).
    """
    features = x.double()
    target = outputs.double()
    target = target - target.mean(dim=1, keepdim=True)
    gram = features.T @ features
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + penalty, features.T @ target).T
    return _scaled(weights, features).to(x.dtype)


def random_router(x: Tensor, num_experts: int, rng: np.random.Generator) -> Tensor:
    """Return random weights (experts, hidden) at the same scale."""
    weights = torch.from_numpy(rng.standard_normal((num_experts, x.shape[1])))
    return _scaled(weights, x.double()).to(x.dtype)


def _scaled(weights: Tensor, features: Tensor) -> Tensor:
    std = (features @ weights.T).std()
    # All outputs alike: any order will do.
    return weights * (ROUTER_STD / std) if std > 0 else weights

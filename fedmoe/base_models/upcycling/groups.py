"""Groups of a dense layer's neurons, one for each expert, of equal size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NUM_DIRECTIONS = 128
"""Random directions that the tokens are projected on: they keep the angles between neurons."""
BALANCED_STEPS = 3


def neighbours(num_neurons: int, num_experts: int) -> Tensor:
    """Return the expert of each neuron, (neurons,): the first ones in expert 0, and so on."""
    return torch.arange(num_neurons) // (num_neurons // num_experts)


def clusters(sizes: Tensor, num_experts: int, rng: np.random.Generator) -> Tensor:
    """Return the expert of each neuron, (neurons,): together are those active on like tokens.

    k-means on the directions of the columns of `sizes` (tokens, neurons), then a few steps in
    which each expert takes exactly its share: the assignment of least total squared distance.
    """
    num_neurons = sizes.shape[1]
    assert num_neurons % num_experts == 0, (num_neurons, num_experts)
    centred = sizes - sizes.mean(0)
    points = F.normalize(centred.T, dim=1).double()
    if points.shape[1] > NUM_DIRECTIONS:
        directions = torch.from_numpy(rng.standard_normal((points.shape[1], NUM_DIRECTIONS)))
        points = F.normalize(points @ directions, dim=1)
    centres, _ = kmeans2(points.numpy(), num_experts, minit="++", rng=rng)
    expert = _balanced(points, torch.from_numpy(centres))
    for _ in range(BALANCED_STEPS - 1):
        means = torch.stack([points[expert == e].mean(0) for e in range(num_experts)])
        expert = _balanced(points, means)
    return expert


def _balanced(points: Tensor, centres: Tensor) -> Tensor:
    """Return each point's centre, (points,); all centres take equally many points."""
    places = len(points) // len(centres)
    distance = torch.cdist(points, centres).square().repeat_interleave(places, dim=1)
    return torch.from_numpy(linear_sum_assignment(distance.numpy())[1]) // places

"""Backward through some of the chosen experts alone: what it costs falls, the output stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ChosenBackward:
    """Lets those experts learn that were chosen before the round; see `NarrowBackward.without`."""

    def __init__(self, chosen: Bool[Tensor, "layers experts"]) -> None:
        self.chosen = chosen
        self.learnt = torch.zeros(chosen.shape, dtype=torch.int64)
        """Tokens so far that an expert learnt from."""

    def to(self, device: torch.device) -> None:
        """Count on a device."""
        self.chosen, self.learnt = self.chosen.to(device), self.learnt.to(device)

    def without(
        self, layer: int, index: Int[Tensor, "tokens k"], weights: Float[Tensor, "tokens k"]
    ) -> Bool[Tensor, "tokens k"]:
        """Return a layer's choices that have no gradient, and count; `experts` means no choice."""
        chosen = self.chosen[layer]
        used = torch.bincount(index.flatten(), minlength=len(chosen) + 1)[: len(chosen)]
        self.learnt[layer] += used * chosen
        return ~F.pad(chosen, (0, 1), value=True)[index]


class NarrowBackward:
    r"""Chooses in every micro-batch the experts of each layer that learn from it.

    Of those that any of its tokens chose, the `most` of the largest importance

    $$s_e = \lambda \frac1B \sum_i G_e(x_i) + (1 - \lambda) \max_i G_e(x_i)
      - \frac\beta B \sum_i G_e(x_i) \log(E \, G_e(x_i))$$

    over its B tokens; $G_e(x)$ is the router's weight of expert e, or 0. Of equal ones those of the
    lower index learn. The others' output is computed without a gradient and nothing is saved for
    backward: not for their LoRA, nor for the router's weights of them, nor for what they read.

    Source: HFedMoE (arXiv:2601.00583), from second-hand notes of its equations. Its prior p(z_e) is
    not known; 1/E, as here, is our choice.
    """

    def __init__(
        self, layers: int, experts: int, most: int, mean_share: float = 0.5, surprise: float = 0.0
    ) -> None:
        self.most, self.mean_share, self.surprise = most, mean_share, surprise
        self.weights = torch.zeros(layers, experts, dtype=torch.float64)
        """The sum over tokens of G so far."""
        self.importance = torch.zeros(layers, experts, dtype=torch.float64)
        """The sum over micro-batches of s, and 0 where no token chose the expert."""
        self.learnt = torch.zeros(layers, experts, dtype=torch.int64)
        """Tokens so far that an expert learnt from."""
        self.tokens = torch.zeros(layers, dtype=torch.int64)
        self.batches = torch.zeros(layers, dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        """Count on a device."""
        for name in ("weights", "importance", "learnt", "tokens", "batches"):
            setattr(self, name, getattr(self, name).to(device))

    def without(
        self, layer: int, index: Int[Tensor, "tokens k"], weights: Float[Tensor, "tokens k"]
    ) -> Bool[Tensor, "tokens k"]:
        """Return a layer's choices that have no gradient, and count; `experts` means no choice."""
        number = self.weights.shape[1]
        # Spread out and not index_add, which on a GPU adds in any order.
        spread = weights.new_zeros(len(index), number + 1, dtype=torch.float64)
        gates = spread.scatter(1, index, weights.detach().double())[:, :number]
        used = torch.bincount(index.flatten(), minlength=number + 1)[:number]
        tokens = (index < number).any(1).sum()
        mean = gates.sum(0) / tokens.clamp(min=1)
        told = torch.special.xlogy(gates, gates * number).sum(0) / tokens.clamp(min=1)
        s = self.mean_share * mean + (1 - self.mean_share) * gates.amax(0)
        s = (s - self.surprise * told).masked_fill(used == 0, -torch.inf)
        best = s.sort(descending=True, stable=True).indices[: self.most]
        learns = torch.zeros(number + 1, dtype=torch.bool, device=index.device)
        learns[best] = True
        learns[:number] &= used > 0
        self.weights[layer] += gates.sum(0)
        self.importance[layer] += s.masked_fill(used == 0, 0.0)
        self.learnt[layer] += used * learns[:number]
        self.tokens[layer] += tokens
        self.batches[layer] += 1
        return (index < number) & ~learns[index]

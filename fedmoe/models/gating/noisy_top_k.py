"""Noisy top-k: in training, noise on the logits lets other experts have a turn."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from fedmoe.models.gating.rule import Call, Choice, Rule
from fedmoe.section import section


@section
class NoisyTopKGating(Rule):
    r"""In training, choose the k largest of noisy logits; outside it, of the logits.

    $$H(x)_i = (x W)_i + \epsilon_i \cdot \sigma\, \mathrm{softplus}\big((x W_{noise})_i\big),
      \quad \epsilon_i \sim N(0, 1)$$

    $W_{noise}$ starts at 0, where softplus is ln 2, and is trained and averaged with the adapter;
    with `learned: false` it stays there. All noise comes from (seed, round, client): the same task
    gives the same bits. The weights are the router's own rule applied to H: where the model does
    not renormalise, a softmax over all experts rather than over the k (there the source differs).

    Source: Shazeer et al. 2017 (arXiv:1701.06538, eq. 3-5).
    """

    name: Literal["noisy_top_k"] = "noisy_top_k"
    serves: ClassVar[bool] = False
    noisy: ClassVar[bool] = True
    learned: bool = True
    """Train how much noise each expert gets from what the token is."""
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The sigma: a factor on all noise, in units of a logit."""

    @property
    def trains_noise(self) -> bool:
        return self.learned

    def choose(self, call: Call) -> Choice | None:
        if call.turn is None:
            return None
        logits = call.logits
        raw = torch.zeros_like(logits)
        if call.noise is not None:
            raw = F.linear(call.hidden, call.noise.to(call.hidden.dtype))
        spread = self.scale * F.softplus(raw)
        # Drawn on the CPU: the same numbers on any device.
        epsilon = torch.randn(logits.shape, generator=call.turn.generator)
        noisy = logits + epsilon.to(logits.device, logits.dtype) * spread
        index = noisy.detach().topk(call.top_k, dim=-1).indices
        return Choice(noisy, index, clean=logits, spread=spread)

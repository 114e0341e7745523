"""Router modulation: a small bonus per expert decides among a token's best experts.

Source: UB-SMoE (arXiv:2605.16690), see `aggregation.ub_smoe`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.families import FAMILIES

SOFTMAX = tuple(kind for kind, family in FAMILIES.items() if family.plain_softmax)
"""Model types whose routers take a softmax over all experts and then the k largest."""


@dataclass(eq=False)
class Modulation:
    """What a router's hook reads: `phi` (experts,), or None to leave the router alone."""

    phi: Tensor | None = None


def modulate(router: nn.Module, model_type: str, full_top_k: int) -> Modulation:
    r"""Let `router` choose by $s_i + \phi_i$ among its `2 K` best experts by affinity s.

    The weights of the chosen are those that the router's own rule gives for the changed
    affinities; with phi = 0 they and the choice are the router's, to the bit.

    Raises:
        ModelError: the rule of this model type's router is not known.
    """
    if model_type not in SOFTMAX:
        raise ModelError(
            f"routers of {model_type!r} models cannot be modulated; expected one of "
            f"{', '.join(SOFTMAX)}"
        )
    modulation = Modulation()
    renormalise = bool(getattr(router, "norm_topk_prob", True))

    def choose(module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor, Tensor]):
        if modulation.phi is None:
            return output
        logits, weights, _ = output
        candidates = logits.topk(min(2 * full_top_k, logits.shape[-1]), dim=-1).indices
        changed = logits + torch.zeros_like(logits).scatter(
            -1, candidates, modulation.phi.to(logits.dtype).expand_as(logits).gather(-1, candidates)
        )
        shares = torch.softmax(changed, dim=-1, dtype=torch.float)
        among = torch.full_like(shares, -1.0).scatter(
            -1, candidates, shares.detach().gather(-1, candidates)
        )
        index = among.topk(int(module.top_k), dim=-1).indices  # pyright: ignore
        chosen = shares.gather(-1, index)
        if renormalise:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return logits, chosen.to(weights.dtype), index

    router.register_forward_hook(choose)
    return modulation

"""Router modulation: a small bonus per expert decides among a token's best experts.

Source: UB-SMoE (arXiv:2605.16690), see `aggregation.ub_smoe`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.families import FAMILIES

SOFTMAX = tuple(kind for kind, family in FAMILIES.items() if family.plain_softmax)
"""Model types whose routers take the k largest logits, weighed by their softmax."""


def softmax_fault(routers: Iterable[nn.Module], model_type: str) -> str | None:
    """Return why these routers do not weigh by a softmax of their logits; None where they do."""
    needs = "needs routers that take a softmax of their logits;"
    if model_type not in SOFTMAX:
        rule = FAMILIES[model_type].rule if model_type in FAMILIES else "an unknown rule"
        known = f"expected one of {', '.join(SOFTMAX)}"
        return f"{needs} those of {model_type!r} models do not ({rule}); {known}"
    if not all(FAMILIES[model_type].is_plain(router) for router in routers):
        other = "config asks for another rule (a norm or a function of its own)"
        return f"{needs} this {model_type!r} model's {other}"
    return None


@dataclass(eq=False)
class Modulation:
    """The input of a router's hook: `phi` (experts,), or None to leave the router alone."""

    phi: Tensor | None = None


def modulate(router: nn.Module, model_type: str, full_top_k: int) -> Modulation:
    r"""Let `router` choose by $s_i + \phi_i$ among its `2 K` best experts by affinity s.

    The weights of the chosen are those that the router's own rule gives for the changed
    affinities; with phi = 0 they and the choice are the router's, to the bit.

    (A router that takes the softmax of the chosen alone: within rounding.) Where k is over 2 K
    there are k candidates.

    Raises:
        ModelError: the router's rule is another.
    """
    if fault := softmax_fault([router], model_type):
        raise ModelError(f"a modulation {fault}")
    modulation = Modulation()
    renormalise = FAMILIES[model_type].renormalises(router)

    def choose(module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor, Tensor]):
        if modulation.phi is None:
            return output
        logits, weights, _ = output
        top_k = int(module.top_k)  # pyright: ignore[reportArgumentType]
        number = min(max(2 * full_top_k, top_k), logits.shape[-1])
        candidates = logits.topk(number, dim=-1).indices
        changed = logits + torch.zeros_like(logits).scatter(
            -1, candidates, modulation.phi.to(logits.dtype).expand_as(logits).gather(-1, candidates)
        )
        shares = torch.softmax(changed, dim=-1, dtype=torch.float)
        among = torch.full_like(shares, -1.0).scatter(
            -1, candidates, shares.detach().gather(-1, candidates)
        )
        index = among.topk(top_k, dim=-1).indices
        chosen = shares.gather(-1, index)
        if renormalise:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return logits, chosen.to(weights.dtype), index

    router.register_forward_hook(choose)
    return modulation

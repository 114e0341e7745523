"""Router modulation: a learned bonus per expert is added to those of a token's best experts.

Source: UB-SMoE (arXiv:2605.16690), see `aggregation.ub_smoe`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.expert_state import ExpertState
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
    """The inputs of a router's hook, and what it records."""

    phi: Tensor | None = None
    """(experts,), which can be trained; None leaves the router alone."""
    mass: Tensor | None = None
    """(experts,): the sum of tokens' softmax so far; None records nothing."""


def modulate(
    router: nn.Module, model_type: str, full_top_k: int, state: ExpertState | None = None
) -> Modulation:
    r"""Let `router` choose by $s_i + \phi_i$ for its `2 K` best experts by affinity s.

    $$m_i = s_i + \phi_i \text{ if i is among the 2 K best, else } s_i, \qquad
      p = \mathrm{softmax}(m)$$

    The k largest of p are chosen, of all experts: one outside of the 2 K wins over one inside that
    a negative phi pushed below it. The weights of the chosen are those that the router's own rule
    gives for m; with phi = 0 they and the choice are the router's, to the bit.

    (A router that takes the softmax of the chosen alone: within rounding.) Padding, which `state`
    tells, is not recorded.

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
        best = logits.topk(min(2 * full_top_k, logits.shape[-1]), dim=-1).indices
        inside = torch.zeros_like(logits).scatter(-1, best, 1.0)
        changed = logits + inside * modulation.phi.to(logits.dtype)
        shares = torch.softmax(changed, dim=-1, dtype=torch.float)
        if modulation.mass is not None:
            valid = None if state is None else state.valid
            seen = shares.detach() if valid is None else shares.detach()[valid]
            modulation.mass += seen.sum(0)
        index = shares.topk(int(module.top_k), dim=-1).indices  # pyright: ignore
        chosen = shares.gather(-1, index)
        if renormalise:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return logits, chosen.to(weights.dtype), index

    router.register_forward_hook(choose)
    return modulation
